"""Tests of the whole sweep command: real runs, measurements, report."""

import json

import pytest

import launch


@pytest.fixture(scope="module")
def arguments(overrides):
    steps = {"train.steps": 3, "optimizer.warmup_steps": 2, "eval.every": 1}
    changes = steps | {"model.num_layers": 1}
    return [f"--config.{o}" for o in overrides(changes)]


@pytest.mark.slow
def test_two_variants_and_two_seeds(arguments, tmp_path, capsys):
    argv = ["sweep", f"--workdir={tmp_path}", "--axis=model.positions=rotary,alibi", "--json"]
    argv += ["--seeds=2", "--match=params", "--lengths=32,64", *arguments]
    assert launch.main(argv) == 0
    out = capsys.readouterr()
    assert "4 done, 0 failed, 0 left of 4" in out.err
    found = json.loads(out.out.splitlines()[-1])
    assert found["finished"] == 4 and len(found["variants"][1]["losses"]) == 2
    text = (tmp_path / "report" / "report.md").read_text()
    for name in ("differences", "loss", "cost", "context"):
        assert f"({name}.png)" in text
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 5_000
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*/metrics.jsonl")}
    assert len(before) == 4 and launch.main(argv) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_report_of_nothing_yet(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llm_jax.sweep.execute.execute", lambda *_: None)
    axis = "--axis=model.norm=layernorm,rmsnorm"
    assert launch.main(["sweep", f"--workdir={tmp_path}", axis, *arguments]) == 0
    assert "0 finished, 0 failed, 6 left" in capsys.readouterr().out


BAD = {
    "nothing": ([], "nothing to compare"),
    "no sweep": (["--report"], "has no sweep.json"),
    "share": (["--axis=model.norm=layernorm,rmsnorm", "--index=3", "--of=2"], "--index=3 --of=2"),
    "match": (["--axis=model.norm=layernorm,rmsnorm", "--match=x"], "--match=x: allowed are"),
    "value": (["--axis=model.norm=layernorm,x"], "variant 'norm x': model.norm='x': allowed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, arguments, tmp_path, capsys):
    options, message = BAD[name]
    given = [] if name == "no sweep" else arguments
    assert launch.main(["sweep", f"--workdir={tmp_path}", *options, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

"""Tests of sweep execution: once per run, failures, several processes, report."""

import dataclasses
import re
import subprocess
import sys
import time

import pytest

from llm_jax import files
from llm_jax.config import ConfigError
from llm_jax.sweep import design, execute, report, results
from llm_jax.sweep.execute import share


@pytest.fixture
def designed(sweep, keys, tmp_path):
    workdir = tmp_path / "sweep"
    return design.commit(design.make(sweep, "", keys), workdir), workdir


def calls(workdir):
    file = workdir / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def states(found, workdir):
    return [run.state() for run in results.runs(found, workdir)]


def test_a_finished_run_is_not_run_again(designed, train):
    found, workdir = designed
    execute.execute(found, workdir, train, tell=lambda _: None)
    order = [f"{name} {seed}" for seed in range(3) for name in ("dense", "window", "wide")]
    assert calls(workdir) == order
    assert states(found, workdir) == ["finished"] * 9
    execute.execute(found, workdir, train, tell=lambda _: None)
    assert calls(workdir) == order
    (workdir / "runs" / "wide" / "seed1" / "checkpoints" / "4").rmdir()  # interrupted, as it were
    execute.execute(found, workdir, train, tell=lambda _: None)
    assert calls(workdir) == [*order, "wide 1"]


def test_each_variant_has_its_own_best_rate_and_is_scored_on_test(sweep, keys, train, tmp_path):
    """All rates with seed 0, then the best alone; a rate whose run fails is not the best."""
    workdir = tmp_path / "sweep"
    rates = {k: {"optimizer.learning_rate": x} for k, x in (("low", 0.005), ("high", 0.03))}
    tuned = dataclasses.replace(sweep, seeds=2, without=("wide",), tune=rates | {"own": {}})
    found = design.make(tuned, "", [*keys, "data.test_fraction=0.1"])
    found = design.commit(found, workdir)
    (workdir / "broken.txt").write_text("window-own 0")
    assert all(run.seed == 0 for run in results.runs(found, workdir))
    execute.execute(found, workdir, train, tell=lambda _: None)
    tried = [f"{k}-{rate} 0" for k in ("dense", "window") for rate in ("low", "high", "own")]
    assert calls(workdir) == [*tried, "dense-own 1", "window-low 1"]
    dense, window = results.summaries(found, workdir)
    assert (dense.label, dense.run, window.run) == ("dense", "dense, own", "window, low")
    assert dense.losses == {0: 0.9, 1: 1.9} and window.losses == {0: 1.0, 1: 2.0}
    assert window.difference.mean == pytest.approx(0.1)
    text = report.write(workdir).read_text()
    assert "## Test loss" in text and "dense: dense, own; window: window, low" in text


def test_a_failing_run_is_recorded_and_the_rest_goes_on(designed, train):
    found, workdir = designed
    (workdir / "broken.txt").write_text("window 1")
    told = []
    execute.execute(found, workdir, train, tell=told.append)
    assert len(calls(workdir)) == 9 and states(found, workdir).count("failed") == 1
    failed = next(run for run in results.runs(found, workdir) if run.state() == "failed")
    assert failed.note()["exit"] == 3 and failed.note()["last_lines"][-2:] == ["first", "it broke"]
    assert "--config.model.window=8" in failed.note()["command"]
    assert "failed with exit code 3" in told[4] and "1 failed" in told[-1]
    assert re.search(r"\| window \| 1 \| exit code 3: it broke", report.write(workdir).read_text())
    (workdir / "broken.txt").unlink()
    execute.execute(found, workdir, train, tell=told.append)
    assert calls(workdir)[9:] == ["window 1"] and states(found, workdir) == ["finished"] * 9
    assert told[-1].startswith("[9 done, 0 failed, 0 left of 9] window, seed 1: validation loss")


def test_processes_share_all_runs_and_none_twice(designed, train):
    found, workdir = designed
    everything = results.runs(found, workdir)
    parts = [share(everything, i, 4) for i in range(4)]
    assert sorted(sum(parts, [])) == sorted(everything)
    execute.execute(found, workdir, train, 1, 4, tell=lambda _: None)
    assert calls(workdir) == ["window 0", "wide 1"]
    assert states(found, workdir).count("left") == 7


@pytest.mark.parametrize("slow_to_start", [False, True])
def test_a_signal_reaches_the_run_and_ends_the_sweep(
    designed, tmp_path, monkeypatch, slow_to_start
):
    """The run tells its parent to end, and waits to be told so itself."""
    found, workdir = designed
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(300)\n"
        "sys.exit(3)\n"
    )
    if slow_to_start:  # the signal is here before the parent knows its child
        start = subprocess.Popen

        def started(*args, **kwargs):
            child = start(*args, **kwargs)
            time.sleep(1)  # a signal that raises nothing does not end it
            return child

        monkeypatch.setattr(execute.subprocess, "Popen", started)
    told = []
    with pytest.raises(KeyboardInterrupt):
        execute.execute(found, workdir, [sys.executable, str(script)], tell=told.append)
    assert told == ["stopped; the same command resumes"]
    logs = [path.read_text() for path in workdir.rglob("log.txt")]
    assert logs == ["saved\n"] and states(found, workdir) == ["left"] * 9


def test_a_run_that_another_process_has_in_hand_is_left_to_it(designed, train):
    found, workdir = designed
    first = results.runs(found, workdir)[0]
    first.folder.mkdir(parents=True)
    with execute._alone(first.folder):
        execute.execute(found, workdir, train, tell=lambda _: None)
    assert len(calls(workdir)) == 8 and "dense 0" not in calls(workdir)


@pytest.mark.parametrize(("index", "of"), [(2, 2), (-1, 2), (0, 0)])
def test_a_share_that_is_none(index, of):
    with pytest.raises(ConfigError, match=f"--index={index} --of={of}: needs --of"):
        share([], index, of)


def test_the_report(designed, train):
    found, workdir = designed
    execute.execute(found, workdir, train, 0, 2, tell=lambda _: None)
    text = report.write(workdir).read_text()
    assert "5 of 9 runs are finished" in text and "| wide | 0 | not finished |" not in text
    assert "| window | 1 | not finished |" not in text and "| window | 0 | not" in text
    execute.execute(found, workdir, train, tell=lambda _: None)
    row = {"length": 4096, "seconds": 0.0125, "bytes": 3 * 2**20, "reason": ""}
    (workdir / "cost").mkdir(exist_ok=True)
    files.write_json(workdir / "cost" / "wide.json", {"rows": [row], "hardware": "a machine"})
    text = report.write(workdir).read_text()
    for unit, value in (("Milliseconds", "12.5"), ("MiB of temporaries", "3.0")):
        assert re.search(rf"\| {unit} .*\n.*\n\| wide \| {value} \| – \|", text)
    assert "## Missing" not in text and "9 of 9 runs are finished" in text
    # Seeds 0, 1, 2 have 0, 0.1 and 0.4 on top: all variants alike, but for 0.01 a seed of wide.
    error = results.standard_error([0, 0.1, 0.4])
    assert f"| 2.1667 ± {error:.4f} | baseline |" in text
    assert "| +0.5000 | – | – | 1.00 |" in text
    wide = results.paired({0: 1.5, 1: 1.51, 2: 1.52}, {0: 2.0, 1: 2.0, 2: 2.0})
    p = f"{wide.p:.2g}"
    assert f"| -0.4900 ± {wide.half_width:.4f} | {p} | {p} | 2.00 |" in text

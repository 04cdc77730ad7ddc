"""Tests that every command-line option reaches the code that it is for."""

import argparse
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch
from llm_jax import commands
from llm_jax import config as configs
from llm_jax.config import ConfigError

RUN = SimpleNamespace(
    config=configs.base(),
    model=None,
    mesh=None,
    objective=SimpleNamespace(
        split=lambda config, name: [name],
        examples=lambda *_: None,
        reference=False,
    ),
    eval_step=lambda tokenizer: None,
)
END = "the work is done"
# Of a command: what it cannot do without, and what it calls, with what that returns; at END the
# command fails, whatever it would have shown.
CALLS = {
    "eval": ([], {
        "train.ensemble.load": (RUN, None, None, 3),
        "data.pipeline.eval_batches": None,
        "train.evaluate.evaluate": END,
    }),
    "generate": ([], {
        "train.run.load_params": (RUN, None, None, 3),
        "decode.complete": END,
    }),
    "compress": (["--to=there", "--method=int8"], {"compress.compress": END}),
    "audit": ([], {"audit.Subject": RUN, "audit.audit": END}),
    "export": (["--to=there"], {"hub.runs.export_run": END}),
    "import": (["--from=here"], {"hub.runs.import_run": END}),
    "prepare": (["--name=x"], {"data.prepare.prepare": END}),
    "plan": (["--config=configs/gpt2.py", "--topology=cpu:8"], {
        "pod.plan.make": END,
        "pod.search.search": END,
    }),
    "sweep": ([], {
        "sweep.spec.load": SimpleNamespace(variants=dict),
        "sweep.design.make": {},
        "sweep.design.commit": {},
        "sweep.results.describe_match": [],
        "sweep.execute.execute": END,
        "sweep.results.runs": END,
    }),
}  # fmt: skip
BESIDE = {"--compiles": ["--search"], "--index": ["--of=2"], "--of": ["--of=2"]}
VALUES = {"--only": "cost", "--config": "configs/quickstart.py", "--axis": "a=1,2",
          "--tune": "a=1,2", "--index": "1", "--prompts": launch.__file__}  # fmt: skip


def options(verb):
    """What a command adds to the options that all have."""
    parser = argparse.ArgumentParser()
    commands.VERBS[verb].add(parser)
    return [action for action in parser._actions if action.dest != "help"]


@pytest.mark.parametrize(
    ("verb", "option"),
    [pytest.param(verb, x, id=f"{verb} {x.option_strings[0]}")
     for verb in CALLS for x in options(verb)],
)  # fmt: skip
def test_every_option_reaches_what_does_the_work(verb, option, monkeypatch, tmp_path, capsys):
    (needed, calls), name = CALLS[verb], option.option_strings[0]
    needed, noted = needed + BESIDE.get(name, []), []

    def stand_in(target, result):
        def call(*args, **options):
            noted.append(f"{target}{args}{options}")
            if result is END:
                raise ConfigError(END)
            return result

        monkeypatch.setattr(f"llm_jax.{target}", call)

    for target, result in calls.items():
        stand_in(target, result)
    monkeypatch.setattr("llm_jax.sharding.activate", lambda mesh: contextlib.nullcontext())
    for check in ("read_config", "import_.check_source"):
        monkeypatch.setattr(f"llm_jax.commands.{check}", lambda folder: None)
    (tmp_path / "sweep.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    Path("16/audit").mkdir(parents=True)  # as of --against=16
    where = [f"--workdir={tmp_path}"] * bool(commands.VERBS[verb].workdir)

    def called(*options):
        noted.clear()
        launch.main([verb, *where, *needed, *options])
        assert capsys.readouterr().err.endswith(f"error: {END}\n")
        return [*noted]

    usual = {int: "7", float: "0.25"}.get(option.type, "16")
    value = VALUES.get(name, option.choices[-1] if option.choices else usual)
    other = name if option.nargs == 0 else f"{name}={value}"
    assert called() == called() != called(other)

"""Tests that an interrupted or damaged import never trains random weights."""

import os
import shutil

import jax
import pytest

import launch
from llm_jax import config as configs
from llm_jax import hub
from llm_jax.data import tokenizers
from llm_jax.hub import runs
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.metrics import read
from tests.hub.test_hub import make
from tests.slow import every


class Killed(BaseException):
    """Nothing of ours catches it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory, text_file):
    """Arguments that import a GPT-2 of random weights, and that train what was imported."""
    path = tmp_path_factory.mktemp("gpt2") / "hf"
    tokenizer = tokenizers.build(
        configs.ConfigDict({"name": "bpe", "vocab_size": 300, "specials": ()}),
        [text_file.read_text()],
    )
    model, params = make({}, tokenizer.vocab_size)
    hub.save(model, jax.tree.map(lambda x: 0.1 * x, params), tokenizer, path)
    small = {"data.train": text_file, "data.batch_size": 8, "train.steps": 1,
             "eval.max_batches": 1, "optimizer.warmup_steps": 0}  # fmt: skip
    keys = [f"--config.{k}={v}" for k, v in small.items()]
    return ["import", f"--from={path}", *keys], ["train", *keys, "--config.sample.prompts=()"]


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """A finished import, and the loss of the first step from there."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch.main([*commands[0], f"--workdir={folder}/run"]) == 0
    shutil.copytree(folder / "run", folder / "trained")
    assert launch.main([*commands[1], f"--workdir={folder}/trained"]) == 0
    return folder / "run", read(folder / "trained")[0]["loss"]


@pytest.mark.slow
def test_killed_at_every_file_it_writes(commands, whole, tmp_path, monkeypatch):
    """What is left is refused, and the same import fills it."""
    monkeypatch.setattr(runs, "_clear", lambda workdir: None)
    replace, save, wait = os.replace, Checkpoints.save, Checkpoints.wait
    moments = []

    def counted(function):
        def call(*args):
            if len(moments) == kill_at:
                raise Killed
            moments.append(function)
            return function(*args)

        return call

    refused = 0
    for kill_at in range(20):
        moments.clear()
        run = tmp_path / str(kill_at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(replace))
            patch.setattr(Checkpoints, "save", counted(save))
            patch.setattr(Checkpoints, "wait", counted(wait))
            try:
                launch.main([*commands[0], f"--workdir={run}"])
                break
            except Killed:
                pass
        if (run / "imported.json").exists():  # before that, nothing at all is there
            assert launch.main([*commands[1], f"--workdir={run}"]) == 2
            refused += 1
        else:
            assert not list(run.iterdir())
    assert refused >= 4
    monkeypatch.undo()
    assert launch.main([*commands[0], f"--workdir={tmp_path / '3'}"]) == 0


DAMAGE = {
    "config.json": lambda run: (run / "config.json").unlink(),
    "checkpoints": lambda run: shutil.rmtree(run / "checkpoints"),
    "step 0": lambda run: shutil.rmtree(run / "checkpoints" / "0"),
    "parameters": lambda run: shutil.rmtree(run / "checkpoints" / "0" / "params"),
    "meta": lambda run: os.truncate(run / "checkpoints" / "0" / "meta" / "metadata", 99),
    "tokenizer": lambda run: shutil.rmtree(run / "tokenizer"),
    "imported.json": lambda run: (run / "imported.json").unlink(),
    "saved.json": lambda run: (run / "saved.json").unlink(),
}


@pytest.mark.parametrize("name", every(2, DAMAGE))
def test_damage_to_an_import(name, commands, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    DAMAGE[name](run)
    code = launch.main([*commands[1], f"--workdir={run}"])
    if name.endswith(".json") and name != "config.json":
        assert code == 0 and read(run)[0]["loss"] == whole[1]
    else:
        assert code == 2 and not (run / "metrics.jsonl").exists()

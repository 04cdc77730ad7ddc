"""Tests that an interrupted run is bit-identical to an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax.train.loop import Trainer
from llm_jax.train.metrics import read

ROOT = Path(__file__).resolve().parents[2]
TIMING = {"tokens_per_second", "mfu", "input_seconds", "step_seconds", "goodput"}
EVERYTHING = {
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "train.microbatches": 2,
    "train.ema_decay": 0.9,
    "train.log_every": 3,
}
GROWING = {"data.ramp_start": 4, "data.ramp_steps": 7, "data.packing": "none"}


def train(config, workdir, reporter, after=lambda info: None) -> tuple[dict, list, object]:
    """Returns the summary, metrics.jsonl without its timings, and the final state."""
    trainer = Trainer(config, workdir, reporter, jax.devices()[:1])
    trainer.hooks.append(after)
    summary = trainer.run()
    return summary, untimed(workdir), jax.device_get(trainer.state)


def untimed(workdir) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read(workdir)]


def same_bits(a, b) -> bool:
    same = lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    return jax.tree.all(jax.tree.map(same, a, b))


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(EVERYTHING, id="everything"),
        pytest.param({}, id="plain", marks=slow),
        pytest.param(GROWING, id="growing", marks=slow),
    ],
)
def test_sigterm_saves_and_the_same_command_resumes(changes, tiny, silent, tmp_path):
    _, rows, state = train(tiny(changes), tmp_path / "whole", silent)

    stops = {5, 8}

    def terminate(info):
        if info.step in stops:
            stops.remove(info.step)
            os.kill(os.getpid(), signal.SIGTERM)

    for reached in (5, 8, 12):
        summary, again, resumed = train(tiny(changes), tmp_path / "stopped", silent, terminate)
        assert (summary["step"], summary["finished"]) == (reached, reached == 12)
        assert again == [row for row in rows if row["step"] <= reached]
    assert "resuming from step 8" in silent.notes
    assert same_bits(resumed, state)


@pytest.mark.slow
def test_killed_at_random_and_during_saves(overrides, tmp_path):
    args = [f"--config.{o}" for o in overrides({"train.steps": 40, "checkpoint.every": 3})]
    draw = random.Random(os.environ.get("LLM_JAX_SEED", 0))
    one_device = "--xla_force_host_platform_device_count=1"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {one_device}",
        # Of its own: who is killed while writing to it leaves half a program behind.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }

    def start(workdir):
        command = [sys.executable, "launch.py", "train", f"--workdir={workdir}", "--json", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def finish(process) -> dict:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(whole)
    for during_save in (False, True, False, True):
        process = start(killed)
        seen = last_step(killed)
        while process.poll() is None and last_step(killed) <= seen:
            time.sleep(0.01)
        if during_save:
            while process.poll() is None and not any(killed.glob("checkpoints/*tmp*")):
                time.sleep(0.001)
        else:
            time.sleep(draw.random())
        process.kill()
        process.communicate()
    summary = finish(start(killed))
    assert finish(reference)["loss"] == summary["loss"]
    assert summary["finished"]
    rows = untimed(whole)
    assert untimed(killed) == rows
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert last_checkpoint(killed) == last_checkpoint(whole)


def last_step(workdir) -> int:
    return max((row["step"] for row in read(workdir)), default=0)


def last_checkpoint(workdir) -> dict:
    """The newest checkpoint's `meta`, which holds a sum of the bits of each array."""
    return json.loads((workdir / "checkpoints" / "40" / "meta" / "metadata").read_text())

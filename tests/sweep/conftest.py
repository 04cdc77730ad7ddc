"""A sweep with a fake train command that writes the files of a run."""

import sys

import pytest

from llm_jax.sweep import Sweep

# A stand-in for launch.py: a loss of its keys, or exit code 3 where a run is told to fail.
TRAIN = """
import json, pathlib, sys
verb, *options = sys.argv[1:]
given = dict(a.removeprefix("--").split("=", 1) for a in options if "=" in a)
folder = pathlib.Path(given["workdir"])
if verb == "eval":  # of test it says the number of the seed, and a tenth of the kind's letters
    print(json.dumps({"loss": int(folder.name[-1]) + len(folder.parent.name) / 10}))
    sys.exit()
seed = int(given["config.seed"])
with open(folder.parent.parent.parent / "calls.txt", "a") as calls:
    calls.write(f"{folder.parent.name} {seed}\\n")
broken = folder.parent.parent.parent / "broken.txt"
if broken.exists() and broken.read_text() == f"{folder.parent.name} {seed}":
    print("first"), print("it broke", file=sys.stderr)
    sys.exit(3)
loss = {"dense": 2.0, "window": 2.5, "wide": 1.5}[folder.parent.name.partition("-")[0]]
loss += 0.1 * seed ** 2 + abs(float(given.get("config.optimizer.learning_rate", 0.01)) - 0.01)
loss += 0.01 * (folder.parent.name == "wide") * seed
rate = 100.0 if folder.parent.name == "wide" else 50.0
rows = [
    {"step": s, "tokens": 100, "tokens_per_second": rate if s > 1 else None}
    | ({"eval_loss": loss + 4 - s} if s > 1 else {})
    for s in (1, 2, 4)
]
(folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
(folder / "checkpoints" / "4").mkdir(parents=True)
"""

AXIS = {
    "dense": {},
    "window": {"model.attention": "local", "model.window": 8},
    "wide": {"model.mlp_dim": 128},
}


@pytest.fixture
def train(tmp_path):
    """The command line without a verb, and `calls`: the runs that it was asked for."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    return [sys.executable, str(script)]


@pytest.fixture
def sweep():
    return Sweep(axes=(AXIS,), seeds=3, lengths=(), reaches=())


@pytest.fixture
def keys(overrides):
    """Overrides of a run of four steps."""
    return overrides({"train.steps": 4})

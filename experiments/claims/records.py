"""Studies by name, and the records of their runs. No JAX."""

import importlib
import math
from pathlib import Path
from typing import NamedTuple

from experiments.claims.claim import Claim
from llm_jax import record
from llm_jax.files import read_json
from llm_jax.sweep import spec

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STUDIES = sorted(path.stem for path in (HERE / "papers").glob("[a-z]*.py"))


class Study(NamedTuple):
    """A file of papers/: what it says of itself, its sweep and its claims."""

    file: str
    text: str
    sweep: spec.Sweep
    claims: tuple[Claim, ...]


def study(name: str) -> Study:
    """Returns a study by its file's name."""
    module = importlib.import_module(f"experiments.claims.papers.{name}")
    file = f"experiments/claims/papers/{name}.py"
    return Study(file, module.__doc__.strip(), module.get_sweep(), tuple(module.CLAIMS))


def file(name: str, label: str, seed: int, folder: Path = RESULTS) -> Path:
    return folder / name / spec.slug(label) / f"seed{seed}.json"


def load(name: str, folder: Path = RESULTS) -> list[dict]:
    """Returns all records of a study; ValueError where one is of no commit of this history."""
    found = sorted((folder / name).glob("*/seed*.json"))
    return [record.check(read_json(path), path) for path in found]


def loss(run: dict) -> float:
    """The validation loss at the end; infinite where the run diverged."""
    return math.inf if run["diverged"] else run["last"]["eval_loss"]


def best(runs: list[dict], variant: str) -> str:
    """Returns the label, of those that a variant was tried with, of the lowest loss of seed 0."""
    tried = {run["run"]: loss(run) for run in runs if run["variant"] == variant and not run["seed"]}
    return min(tried, key=tried.get)


def chosen(runs: list[dict]) -> dict[str, list[dict]]:
    """Returns {variant: its runs by seed}, of the best label, without the seed that chose it."""
    found: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        variant = run["variant"]
        tuned = len({other["run"] for other in runs if other["variant"] == variant}) > 1
        if run["run"] == best(runs, variant) and (run["seed"] or not tuned):
            found.setdefault(variant, []).append(run)
    return found


def metric(run: dict, name: str) -> float:
    return loss(run) if name == "loss" else run["last"][f"eval_{name}"]

"""Trains sequence mixers on diagnostic tasks, measures decoding, writes README.md.

    python experiments/mixers/run.py [STUDY …] [--kinds=softmax,linear]     # or only --page

For each variant of a study, the missing runs of results/STUDY/ are made: each learning rate with
seed 0, then the other seeds at the rate with the lowest validation loss. The configs are those of
configs/ablations/mixers.py, matched by llm_jax.sweep. Runs of a variant share a compiled program.
"""

import argparse
import dataclasses
import itertools
import sys
import time
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.mixers import decode, page  # noqa: E402
from llm_jax import config as configs  # noqa: E402
from llm_jax import objectives, record, sharding  # noqa: E402
from llm_jax.data import pipeline, tasks  # noqa: E402
from llm_jax.models import init_params  # noqa: E402
from llm_jax.sweep import design, spec  # noqa: E402
from llm_jax.train.evaluate import evaluate  # noqa: E402
from llm_jax.train.run import Setup  # noqa: E402
from llm_jax.train.state import init_state  # noqa: E402

SPEC = "configs/ablations/mixers.py"
RATES = (3e-3, 1e-2)
SEEDS = 3
SOLVED = 0.999  # validation accuracy at which a run ends before its last step
TEST_BATCHES = 8  # of validation and of each test set


@dataclasses.dataclass(frozen=True)
class Study:
    """A variant of the config; test sets by name, none: data.test of the config itself."""

    tests: dict[str, str] = dataclasses.field(default_factory=dict)
    patience: int = 1  # evaluations in a row at SOLVED that end a run


RECALL = {str(n): f"task:recall?pairs={n}&queries=32&vocab=64&length=128&power=1"
          for n in (4, 8, 16, 32)}  # fmt: skip
GROUP = "task:permutations?n={}&length={}"
STUDIES = {
    "recall": Study(RECALL),
    "parity": Study({f"to {n}": GROUP.format(2, n + 2) for n in (16, 32, 64)}, 3),
    "s3": Study({f"to {n}": GROUP.format(3, n + 2) for n in (16, 32, 64)}, 3),
    "bytes": Study(),
    "hybrid_recall": Study(RECALL),
    "needle": Study({f"depth {d}": f"task:needle?length=256&depth={d}" for d in (0, 0.5, 0.9)}),
}


class Cell:
    """A kind in a study: its config, and one compiled program for all rates and seeds."""

    def __init__(self, study: Study, config):
        self.study, self.config = study, config
        self.objective = objectives.get(config.objective.name)
        self.splits = self.objective.splits(config)
        self.tokenizer = self.objective.build_tokenizer(config, self.splits["train"])
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        setup = Setup(config, mesh)
        place = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
        self.mesh, self.step = mesh, setup.train_step(place)
        self.eval_step = setup.eval_step(self.tokenizer)

        def draw(seed):
            params = init_params(setup.model, jax.random.key(seed))
            return init_state(setup.model, setup.tx, config, params)

        self.draw = jax.jit(draw, out_shardings=place)

    def measure(self, params, documents) -> dict[str, float]:
        """Loss, and the accuracy of answers."""
        batches = pipeline.eval_batches(_examples(self.config, self.tokenizer), documents)
        values = evaluate(self.eval_step, params, batches, self.mesh, TEST_BATCHES).values
        return {k: values[k] for k in ("loss", "accuracy") if k in values}

    def train(self, rate: float, seed: int) -> tuple[dict, object]:
        """Returns the record of a run, and its parameters."""
        steps, every = self.config.train.steps, self.config.eval.every
        state, began, curve = self.draw(np.uint32(seed)), time.perf_counter(), []
        batches = training_batches(self.config.data.train, self, seed, steps)
        for step, batch in enumerate(batches, start=1):
            state, metrics = self.step(state, batch, np.uint32(seed), np.float32(rate))
            if step % every and step < steps:
                continue
            found = self.measure(state.params, self.splits["validation"])
            curve.append([step, float(metrics["loss"]), *found.values()])
            solved = [point[-1] >= SOLVED for point in curve[-self.study.patience :]]
            enough = "accuracy" in found and sum(solved) == self.study.patience
            if enough or not np.isfinite(curve[-1][1]):
                break
        seconds = time.perf_counter() - began
        return {"rate": rate, "seed": seed, "seconds": seconds, "curve": curve}, state.params

    def test(self, params) -> dict[str, dict]:
        """What is measured of each test set."""
        if not self.study.tests:
            return {"test": self.measure(params, self.splits["test"])}
        sets = {name: tasks.Examples(tasks.parse(text, "data.test"), "test", 0)
                for name, text in self.study.tests.items()}  # fmt: skip
        return {name: self.measure(params, documents) for name, documents in sets.items()}

    def runs(self) -> list[dict]:
        """All rates with seed 0, then the other seeds at the best one, scored on test."""
        tried = [self.train(rate, 0) for rate in RATES]
        best, params = min(tried, key=lambda run: run[0]["curve"][-1][2])
        best["test"] = self.test(params)
        found = [run for run, _ in tried]
        for seed in range(1, SEEDS):
            run, params = self.train(best["rate"], seed)
            found.append(run | {"test": self.test(params)})
        return found


def _examples(config, tokenizer):
    return objectives.get(config.objective.name).examples(tokenizer, config)


BATCHES: dict[tuple, list] = {}


def training_batches(key: str, cell: Cell, seed: int, steps: int) -> list[dict]:
    """Returns the first batches of a seed, the same for every variant of a study."""
    if (key, seed) not in BATCHES:
        config = configs.from_dict(cell.config.to_dict() | {"seed": seed})
        documents = cell.objective.splits(config)["train"]
        batches = pipeline.train_iterator(_examples(config, cell.tokenizer), documents)
        BATCHES[key, seed] = list(itertools.islice(batches, steps))
    return BATCHES[key, seed]


def designed(name: str, kinds: list[str]) -> dict:
    """The matched variants of a study, those alone and the baseline, by their names."""
    sweep = spec.load(f"{SPEC}:{name}")
    axis = {k: v for k, v in sweep.axes[0].items() if k in kinds or k == next(iter(sweep.axes[0]))}
    sweep = dataclasses.replace(sweep, axes=(axis,), tune={})
    return design.make(sweep, f"{SPEC}:{name}", [])


def make(name: str, kind: str, variant: dict) -> None:
    """Writes results/STUDY/KIND.json."""
    config = configs.from_dict(variant["config"])
    began = time.perf_counter()
    runs = Cell(STUDIES[name], config).runs()
    record.write(
        HERE / "results" / name / f"{spec.slug(kind)}.json", kind=kind, runs=runs,
        parameters=variant["parameters"], mlp_dim=config.model.mlp_dim,
        state_bytes=decode.cache_bytes(config.model, config.model.max_length),
        train={"task": config.data.train, "rows": config.data.batch_size,
               "length": config.model.max_length, "steps": config.train.steps},
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def study(name: str, kinds: list[str]) -> list[str]:
    """Makes the missing records of a study; returns the variants that failed."""
    wanted = kinds or list(spec.load(f"{SPEC}:{name}").axes[0])
    there = lambda kind: (HERE / "results" / name / f"{spec.slug(kind)}.json").exists()
    missing = [kind for kind in wanted if not there(kind)]
    if not missing:
        return []
    found, failed = designed(name, missing), []
    for kind, why in found["impossible"].items():
        print(f"{name}, {kind}: {why}", flush=True)
    for kind in missing:
        if kind not in found["variants"]:
            continue
        began = time.perf_counter()
        try:
            make(name, kind, found["variants"][kind])
        except Exception:  # the others are not held up; the exit code is 1
            traceback.print_exc()
            failed.append(f"{name}, {kind}")
        jax.clear_caches()
        print(f"{name}, {kind}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help=f"of: decode, {', '.join(STUDIES)}")
    parser.add_argument("--kinds", default="", help="separated by semicolons")
    parser.add_argument("--page", action="store_true", help="only write README.md from the records")
    options, failed = parser.parse_args(), []
    if not options.page:
        if record.commit().endswith("+changes"):
            raise SystemExit("commit first: a record names the commit that made it")
        kinds = [kind for kind in options.kinds.split(";") if kind]
        for name in options.studies or ["decode", *STUDIES]:
            failed += {"decode": decode.study}.get(name, partial(study, name))(kinds) or []
    page.write(RATES, SEEDS)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

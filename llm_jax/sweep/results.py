"""Results of a sweep, read from the run folders, and their statistics. No JAX."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from llm_jax.files import read_json
from llm_jax.sweep.spec import slug
from llm_jax.train import metrics


class Run(NamedTuple):
    """A run: a variant with a seed."""

    label: str
    seed: int
    folder: Path
    steps: int

    def rows(self) -> list[dict]:
        return metrics.read(self.folder)

    def note(self) -> dict[str, Any]:
        """Returns run.json: command, commit, exit code and time of the last start; {} if none."""
        file = self.folder / "run.json"
        return read_json(file) if file.exists() else {}

    def state(self) -> str:
        """Returns 'finished' (last step reached, saved and evaluated), 'failed' or 'left'."""
        rows = self.rows()
        reached = rows and rows[-1]["step"] == self.steps and rows[-1].get("eval_loss") is not None
        if reached and (self.folder / "checkpoints" / str(self.steps)).is_dir():
            return "finished"
        return "failed" if self.note().get("exit") else "left"


def grouped(design: dict) -> dict[str, list[str]]:
    """Returns {variant: labels of its runs}, several if a setting is tuned."""
    groups: dict[str, list[str]] = {}
    for label, run in design["variants"].items():
        groups.setdefault(run.get("variant", label), []).append(label)
    return groups


def run_of(design: dict, workdir: Path, label: str, seed: int) -> Run:
    steps = design["variants"][label]["config"]["train"]["steps"]
    return Run(label, seed, workdir / "runs" / slug(label) / f"seed{seed}", steps)


def best(design: dict, workdir: Path, variant: str) -> str | None:
    """Returns the label of a variant with the lowest validation loss for seed 0.

    None while some are unfinished, or if all have failed.
    """
    labels = grouped(design)[variant]
    if len(labels) == 1:
        return labels[0]
    tried = [run_of(design, workdir, label, 0) for label in labels]
    states = [run.state() for run in tried]
    losses = {run.label: run.rows()[-1]["eval_loss"]
              for run, state in zip(tried, states, strict=True) if state == "finished"}  # fmt: skip
    return None if "left" in states else min(losses, key=losses.get, default=None)


def planned(design: dict) -> list[tuple[str, int]]:
    """Returns (label, 0) of all runs with the first seed, then (variant, seed) of the others.

    The order completes pairs early, and runs further seeds of tuned settings last.
    """
    others = [(name, s) for s in range(1, design["seeds"]) for name in grouped(design)]
    return [*((label, 0) for label in design["variants"]), *others]


def find(design: dict, workdir: Path, name: str, seed: int) -> Run | None:
    """Returns the run of an item of `planned`; None while it is undetermined."""
    label = best(design, workdir, name) if seed else name
    return label and run_of(design, workdir, label, seed)


def runs(design: dict, workdir: Path) -> list[Run]:
    """Returns all runs that are determined so far."""
    known = (find(design, workdir, *item) for item in planned(design))
    return [run for run in known if run]


def chosen(design: dict, workdir: Path) -> list[tuple[str, Run]]:
    """Returns (variant, run) of the best label of each variant, with all seeds."""
    labels = {name: best(design, workdir, name) for name in grouped(design)}
    known = [(name, label) for name, label in labels.items() if label]
    seeds = range(design["seeds"])
    return [(k, run_of(design, workdir, label, seed)) for seed in seeds for k, label in known]


def describe_match(design: dict) -> list[str]:
    """Returns a line for each variant: its matched mlp_dim and the remaining difference."""
    name = {"params": "parameters", "flops": "flops_per_token"}.get(design["match"])
    firsts = {k: design["variants"][labels[0]] for k, labels in grouped(design).items()}
    variants = firsts if name else {}
    target = name and variants[design["baseline"]][name]
    return [
        f"{label}: mlp_dim {v['config']['model']['mlp_dim']:,}, {v[name]:,.0f} "
        f"{name.replace('_', ' ')}, {v[name] / target - 1:+.3%} of the baseline's"
        for label, v in variants.items()
    ]


class Curve(NamedTuple):
    """Validation losses of a run, with steps, tokens and seconds up to each."""

    steps: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray  # training time, without compilation and evaluation


def curve(rows: list[dict]) -> Curve:
    """Returns the curve of logged rows; unlogged steps count like the next logged step."""
    steps = np.array([row["step"] for row in rows])
    tokens = np.diff(steps, prepend=0) * np.array([row["tokens"] for row in rows])
    rates = np.array([row["tokens_per_second"] or np.inf for row in rows])
    seconds = np.cumsum(tokens / rates)
    at = np.array([row.get("eval_loss") is not None for row in rows])
    loss = np.array([row["eval_loss"] for row in rows if row.get("eval_loss") is not None])
    return Curve(steps[at], loss, np.cumsum(tokens)[at], seconds[at])


def rate(rows: list[dict]) -> float:
    """Returns the median of the logged tokens per second."""
    return float(np.median([r["tokens_per_second"] for r in rows if r["tokens_per_second"]] or [0]))


class Paired(NamedTuple):
    """A paired difference of means over the same seeds; n = 1 has no interval and p."""

    n: int
    mean: float
    half_width: float  # half of the 95 % interval
    p: float  # two-sided


def paired(losses: dict[int, float], baseline: dict[int, float]) -> Paired | None:
    """Paired t-test of {seed: loss} over common seeds; None without any."""
    seeds = sorted(losses.keys() & baseline.keys())
    if not seeds:
        return None
    a, b = (np.array([x[s] for s in seeds]) for x in (losses, baseline))
    mean = float(np.mean(a - b))
    if len(seeds) < 2 or np.ptp(a - b) == 0:  # t is undefined without variance
        return Paired(len(seeds), mean, float("nan"), float("nan"))
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    return Paired(len(seeds), mean, float(high - low) / 2, float(test.pvalue))


def holm(p: dict[str, float]) -> dict[str, float]:
    """Returns Holm's (1979) adjusted p of each test, ignoring NaN."""
    ordered = sorted((value, name) for name, value in p.items() if value == value)
    adjusted, highest = {}, 0.0
    for i, (value, name) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - i) * value))
        adjusted[name] = highest
    return adjusted


def standard_error(values: list[float]) -> float:
    """Standard error of the mean; NaN for fewer than two values."""
    return float(stats.sem(values)) if len(values) > 1 else float("nan")


class Summary(NamedTuple):
    """Summary of a variant over its finished seeds."""

    label: str
    run: str  # label of its runs, the best one if tuned
    losses: dict[int, float]  # by seed, at the last step: validation loss, or test if tuned
    difference: Paired | None  # from the baseline
    holm: float
    rate: float  # tokens per second
    curves: list[Curve]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.losses.values()))) if self.losses else float("nan")


def summaries(design: dict, workdir: Path) -> list[Summary]:
    """Returns a Summary for each variant, the baseline first."""
    finished = [(k, run) for k, run in chosen(design, workdir) if run.state() == "finished"]
    rows = {(name, run.seed): run.rows() for name, run in finished}
    losses: dict[str, dict[int, float]] = {name: {} for name in grouped(design)}
    for name, run in finished:
        scored = run.folder / "test.json"
        if not design.get("tuned"):
            losses[name][run.seed] = run.rows()[-1]["eval_loss"]
        elif scored.exists():
            losses[name][run.seed] = read_json(scored)["loss"]
    base = losses[design["baseline"]]
    others = {k: paired(v, base) for k, v in losses.items() if k != design["baseline"]}
    adjusted = holm({k: test.p for k, test in others.items() if test})

    def one(label: str) -> Summary:
        own = [r for (name, _), r in rows.items() if name == label]
        speed = float(np.median([rate(r) for r in own])) if own else float("nan")
        p = adjusted.get(label, float("nan"))
        run = best(design, workdir, label) or grouped(design)[label][0]
        return Summary(label, run, losses[label], others.get(label), p, speed, [*map(curve, own)])

    return [one(label) for label in grouped(design)]


def as_json(design: dict, workdir: Path) -> list[dict[str, Any]]:
    """Returns the summaries as JSON, with null for unknown values."""
    known = lambda x: None if x != x else x
    return [
        {
            "label": s.label,
            "run": s.run,
            "losses": s.losses,
            "mean": known(s.mean),
            "difference": s.difference.mean if s.difference else None,
            "p": known(s.difference.p) if s.difference else None,
            "holm": known(s.holm),
            "tokens_per_second": known(s.rate),
        }
        for s in summaries(design, workdir)
    ]


def stored(design: dict, workdir: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (variant, content of the JSON file of that name) for finished runs."""
    for variant, run in chosen(design, workdir):
        if (run.folder / name).exists() and run.state() == "finished":
            yield variant, read_json(run.folder / name)

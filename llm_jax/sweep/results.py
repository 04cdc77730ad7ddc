"""Results of a sweep's runs, read from their folders, and their statistics. No JAX."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from llm_jax.files import read_json
from llm_jax.sweep.spec import slug
from llm_jax.train import metrics


class Run(NamedTuple):
    """The run of one variant with one seed."""

    label: str
    seed: int
    folder: Path
    steps: int

    def rows(self) -> list[dict]:
        """The rows of its metrics.jsonl."""
        return metrics.read(self.folder)

    def note(self) -> dict[str, Any]:
        """run.json: command, commit, exit code and seconds of its last start; {} before."""
        file = self.folder / "run.json"
        return read_json(file) if file.exists() else {}

    def state(self) -> str:
        """'finished' (the last step is reached, saved and evaluated), 'failed' or 'left'."""
        rows = self.rows()
        reached = rows and rows[-1]["step"] == self.steps and rows[-1].get("eval_loss") is not None
        if reached and (self.folder / "checkpoints" / str(self.steps)).is_dir():
            return "finished"
        return "failed" if self.note().get("exit") else "left"


def runs(design: dict, workdir: Path) -> list[Run]:
    """All runs, the first seed of every variant first: pairs are complete as early as can be."""
    return [
        Run(
            label,
            seed,
            workdir / "runs" / slug(label) / f"seed{seed}",
            variant["config"]["train"]["steps"],
        )
        for seed in range(design["seeds"])
        for label, variant in design["variants"].items()
    ]


def describe_match(design: dict) -> list[str]:
    """Returns a line for each variant: its matched mlp_dim, and what is left of the difference."""
    name = {"params": "parameters", "flops": "flops_per_token"}.get(design["match"])
    variants = design["variants"] if name else {}
    target = name and variants[design["baseline"]][name]
    return [
        f"{label}: mlp_dim {v['config']['model']['mlp_dim']:,}, {v[name]:,.0f} "
        f"{name.replace('_', ' ')}, {v[name] / target - 1:+.3%} of the baseline's"
        for label, v in variants.items()
    ]


class Curve(NamedTuple):
    """A run's validation losses, with steps, tokens and seconds until each."""

    steps: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray  # of training: neither compiling nor evaluating


def curve(rows: list[dict]) -> Curve:
    """Returns the curve of logged rows; an unlogged step counts as the next logged one."""
    steps = np.array([row["step"] for row in rows])
    tokens = np.diff(steps, prepend=0) * np.array([row["tokens"] for row in rows])
    rates = np.array([row["tokens_per_second"] or np.inf for row in rows])
    seconds = np.cumsum(tokens / rates)
    at = np.array([row.get("eval_loss") is not None for row in rows])
    loss = np.array([row["eval_loss"] for row in rows if row.get("eval_loss") is not None])
    return Curve(steps[at], loss, np.cumsum(tokens)[at], seconds[at])


def rate(rows: list[dict]) -> float:
    """The median of the logged tokens a second."""
    return float(np.median([r["tokens_per_second"] for r in rows if r["tokens_per_second"]] or [0]))


class Paired(NamedTuple):
    """A difference of two means over the same seeds; n = 1 has no interval and no p."""

    n: int
    mean: float
    half_width: float  # of the 95 % interval
    p: float  # two-sided


def paired(losses: dict[int, float], baseline: dict[int, float]) -> Paired | None:
    """Paired t-test of {seed: loss} over the seeds that both have; None without any."""
    seeds = sorted(losses.keys() & baseline.keys())
    if not seeds:
        return None
    a, b = (np.array([x[s] for s in seeds]) for x in (losses, baseline))
    mean = float(np.mean(a - b))
    if len(seeds) < 2 or np.ptp(a - b) == 0:  # without spread there is no t
        return Paired(len(seeds), mean, float("nan"), float("nan"))
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    return Paired(len(seeds), mean, float(high - low) / 2, float(test.pvalue))


def holm(p: dict[str, float]) -> dict[str, float]:
    """Returns Holm's (1979) adjusted p of each test; those that are not a number are left out."""
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
    """A variant over its finished seeds."""

    label: str
    losses: dict[int, float]  # by seed, at the last step
    difference: Paired | None  # to the baseline
    holm: float
    rate: float  # tokens a second
    curves: list[Curve]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.losses.values()))) if self.losses else float("nan")


def summaries(design: dict, workdir: Path) -> list[Summary]:
    """Returns one for each variant, the baseline first."""
    rows = {
        (run.label, run.seed): run.rows()
        for run in runs(design, workdir)
        if run.state() == "finished"
    }
    losses = {
        label: {seed: r[-1]["eval_loss"] for (name, seed), r in rows.items() if name == label}
        for label in design["variants"]
    }
    base = losses[design["baseline"]]
    others = {k: paired(v, base) for k, v in losses.items() if k != design["baseline"]}
    adjusted = holm({k: test.p for k, test in others.items() if test})

    def one(label: str) -> Summary:
        own = [r for (name, _), r in rows.items() if name == label]
        speed = float(np.median([rate(r) for r in own])) if own else float("nan")
        p = adjusted.get(label, float("nan"))
        return Summary(label, losses[label], others.get(label), p, speed, [*map(curve, own)])

    return [one(label) for label in design["variants"]]


def as_json(design: dict, workdir: Path) -> list[dict[str, Any]]:
    """Returns the summaries as JSON, null for what is not known."""
    known = lambda x: None if x != x else x
    return [
        {
            "label": s.label,
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
    """Yields (label, what the run's JSON file of that name holds) of the finished runs."""
    for run in runs(design, workdir):
        if (run.folder / name).exists() and run.state() == "finished":
            yield run.label, read_json(run.folder / name)

"""Figures with their errors: bootstrap and binomial intervals of 95 %."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

ROUNDS = 300  # of the bootstrap
EXACT = "exact"


def figure(
    name: str, value: float, unit: str = "", low: float | None = None, high: float | None = None,
    n: int = 1, error: str = EXACT,
) -> dict[str, Any]:
    """Returns a figure as JSON: its 95 % interval and what that is over; none of a count."""
    number = lambda x: None if x is None or not np.isfinite(x) else float(x)
    return {"name": name, "value": number(value), "unit": unit, "low": number(low),
            "high": number(high), "n": int(n), "error": error}  # fmt: skip


def bootstrapped(
    name: str, statistic: Callable[..., float], *columns: Sequence, unit: str = "",
    groups: Sequence | None = None,
) -> dict[str, Any]:
    """A statistic of columns of equal length, with its percentile bootstrap interval.

    groups: numbers of what is drawn together (tokens of a row); None: each row by itself.
    """
    columns, rng = [np.asarray(x) for x in columns], np.random.default_rng(0)
    groups = np.arange(len(columns[0])) if groups is None else np.asarray(groups)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    drawn = []
    for _ in range(ROUNDS):
        rows = np.concatenate([parts[i] for i in rng.integers(len(parts), size=len(parts))])
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(statistic(*(x[rows] for x in columns)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return figure(name, statistic(*columns), unit, low, high, len(parts), "bootstrap")


def mean(name: str, values: Sequence[float], unit: str = "") -> dict[str, Any]:
    """The mean of values, with its bootstrap interval."""
    return bootstrapped(name, np.mean, np.asarray(values, float), unit=unit)


def ratio(sums: np.ndarray, weights: np.ndarray) -> float:
    """The mean of rows that weigh differently: a loss a token."""
    return sums.sum() / weights.sum()


def share(name: str, hits: Sequence[bool], unit: str = "") -> dict[str, Any]:
    """The share of trials that are hits, with Wilson's interval (1927)."""
    hits = np.asarray(hits, bool)
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return figure(name, hits.mean(), unit, found.low, found.high, len(hits), "binomial")

"""Figures with 95 % bootstrap and binomial confidence intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

ROUNDS = 300  # bootstrap samples
EXACT = "exact"


def figure(
    name: str, value: float, unit: str = "", low: float | None = None, high: float | None = None,
    n: int = 1, error: str = EXACT,
) -> dict[str, Any]:
    """Returns a figure as JSON, with its 95 % interval and the basis of it, if any."""
    number = lambda x: None if x is None or not np.isfinite(x) else float(x)
    return {"name": name, "value": number(value), "unit": unit, "low": number(low),
            "high": number(high), "n": int(n), "error": error}  # fmt: skip


def bootstrapped(
    name: str, statistic: Callable[..., float], *columns: Sequence, unit: str = "",
    groups: Sequence | None = None,
) -> dict[str, Any]:
    """Returns a statistic of equally long columns with its percentile bootstrap interval.

    groups: ids of units that are resampled together (tokens of a row); None: single rows.
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
    """Returns the mean of values, with its bootstrap interval."""
    return bootstrapped(name, np.mean, np.asarray(values, float), unit=unit)


def ratio(sums: np.ndarray, weights: np.ndarray) -> float:
    """Returns the weighted mean of rows, such as a loss per token."""
    return sums.sum() / weights.sum()


def share(name: str, hits: Sequence[bool], unit: str = "") -> dict[str, Any]:
    """Returns the fraction of trials that are hits, with Wilson's interval (1927)."""
    hits = np.asarray(hits, bool)
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return figure(name, hits.mean(), unit, found.low, found.high, len(hits), "binomial")

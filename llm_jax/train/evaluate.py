"""Means of an objective's metrics over a set of batches."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax import sharding


def evaluate(
    eval_step: Callable, params: Any, batches: Iterable[dict], mesh: Mesh, max_batches: int = 0
) -> dict[str, float]:
    """Returns each metric's mean (loss: nats a token) and 'tokens', over all or max_batches."""
    found = [
        eval_step(params, sharding.put(batch, mesh))
        for batch in islice(batches, max_batches or None)
    ]
    # Added here in float64: float32 would lose small batches in a large sum.
    total = lambda *xs: float(np.sum(xs, dtype=np.float64))
    sums, weights = jax.tree.map(total, *jax.device_get(found))
    means = {name: sums[name] / max(weights[name], 1e-9) for name in sums}
    return means | {"tokens": int(weights["loss"])}

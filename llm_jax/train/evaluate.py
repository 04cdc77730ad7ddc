"""Means of an objective's metrics over a set of batches."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llm_jax import sharding


def evaluate(
    eval_step: Callable, params: Any, batches: Iterable[dict], mesh: Mesh, max_batches: int = 0
) -> dict[str, float]:
    """Returns each metric's mean (loss: nats a token) and 'tokens', over all or max_batches."""
    totals = None
    for batch in islice(batches, max_batches or None):
        result = eval_step(params, sharding.put(batch, mesh))
        totals = result if totals is None else jax.tree.map(jnp.add, totals, result)
    sums, weights = jax.device_get(totals)
    means = {name: float(sums[name] / max(weights[name], 1e-9)) for name in sums}
    return means | {"tokens": int(weights["loss"])}

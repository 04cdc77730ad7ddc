"""Means of an objective's metrics, and scores of its predictions, over a set of batches."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from llm_jax import sharding


def evaluate(
    eval_step: Callable,
    params: Any,
    batches: Iterable[dict],
    mesh: Mesh,
    max_batches: int = 0,
    score: Callable[[dict], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Returns each metric's mean (loss: nats a token) and 'tokens', over all or max_batches.

    With `score`, also what it gives of the predictions on all rows, and their number, 'examples'.
    A batch that does not divide over the mesh is filled up with rows of padding.
    """
    results = [
        eval_step(params, sharding.put(filled(batch, mesh), mesh))
        for batch in islice(batches, max_batches or None)
    ]
    # Added here in float64: float32 would lose small batches in a large sum.
    total = lambda *xs: float(np.sum(xs, dtype=np.float64))
    sums, weights = jax.tree.map(total, *jax.device_get([result[:2] for result in results]))
    means = {name: sums[name] / max(weights[name], 1e-9) for name in sums}
    if score is None:
        return means | {"tokens": int(weights["loss"])}
    rows = _joined([predictions for *_, predictions in results])
    tokens = rows.pop("tokens")
    return means | {"tokens": int(tokens.sum()), "examples": len(tokens)} | score(rows)


def _joined(predictions: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """Predictions of all real rows, gathered from all processes."""
    if jax.process_count() > 1:
        predictions = multihost_utils.process_allgather(predictions, tiled=True)
    parts = jax.device_get(predictions)
    return {
        name: np.concatenate([part[name][part["real"]] for part in parts])
        for name in parts[0] if name != "real"
    }  # fmt: skip


def filled(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """Pads a batch with rows of zeros, of weight 0, until it divides over the mesh."""
    if jax.process_count() > 1:  # each has its rows of one that `sharding.check` has let pass
        return batch
    padding = lambda x: -len(x) % sharding.batch_shards(mesh)
    return {k: np.pad(x, [(0, padding(x))] + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()}

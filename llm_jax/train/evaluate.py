"""Evaluation of an objective on a dataset: mean metrics, predictions and task scores."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from llm_jax import sharding
from llm_jax.data.chunks import DOCUMENT
from llm_jax.data.examples import Arrays, Record


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    Attributes:
      values: the mean of each metric (loss: nats per token) and 'tokens'; for objectives with
        predictions also their scores and the number of documents, 'examples'.
      records, answers: the documents and the prediction for each.
    """

    values: dict[str, float]
    records: list[Record]
    answers: list[Record]


def evaluate(
    eval_step: Callable, params: Any, batches: Iterable[dict], mesh: Mesh, max_batches: int = 0,
    write: Callable[[Any, list[Record]], list[Record]] | None = None,
) -> Evaluation:
    """Evaluates parameters on all batches, or on max_batches.

    Batches that do not divide over the mesh are padded with empty rows.

    Args:
      batches: pipeline.eval_batches, which also holds the documents.
      write: Setup.writer, for objectives that generate text.
    """
    results = [
        eval_step(params, sharding.put(filled(batch, mesh), mesh))
        for batch in islice(batches, max_batches or None)
    ]
    # Accumulate in float64: float32 would lose small batches in a large sum.
    total = lambda *xs: float(np.sum(xs, dtype=np.float64))
    sums, weights = jax.tree.map(total, *jax.device_get([result[:2] for result in results]))
    means = {name: sums[name] / max(weights[name], 1e-9) for name in sums}
    values = means | {"tokens": int(weights["loss"])}
    predictions = [predictions for *_, predictions in results]
    if write:
        documents, examples = batches.documents, batches.examples
        most = max_batches * examples.config.data.batch_size or len(documents)
        records = [documents[i] for i in range(min(most, len(documents)))]
        answers = write(params, records)
    elif predictions[0]:
        rows, examples = by_document(predictions), batches.examples
        values["tokens"] = sum(int(row["tokens"]) for of_one in rows.values() for row in of_one)
        records = [batches.documents[i] for i in rows]
        answers = [examples.answer(*both) for both in zip(records, rows.values(), strict=True)]
    else:
        return Evaluation(values, [], [])
    values |= {"examples": len(records)} | examples.score(records, answers)
    return Evaluation(values, records, answers)


def by_document(predictions: list[dict[str, jax.Array]]) -> dict[int, list[Arrays]]:
    """Returns the predictions for the rows of each document, gathered from all processes."""
    if jax.process_count() > 1:
        predictions = multihost_utils.process_allgather(predictions, tiled=True)
    rows: dict[int, list[Arrays]] = {}
    for part in jax.device_get(predictions):
        for i in np.flatnonzero(part["real"]):
            row = {name: values[i] for name, values in part.items()}
            rows.setdefault(int(row[DOCUMENT]), []).append(row)
    return rows


def filled(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """Pads a batch with rows of zeros, with weight 0, until it divides over the mesh."""
    if jax.process_count() > 1:  # `sharding.check` has checked that the batch divides
        return batch
    padding = lambda x: -len(x) % sharding.batch_shards(mesh)
    return {k: np.pad(x, [(0, padding(x))] + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()}

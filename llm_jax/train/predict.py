"""Answers to records that come one after the other, in batches of rows of similar length."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax import sharding
from llm_jax.config import ConfigError
from llm_jax.data.chunks import DOCUMENT, Chunks
from llm_jax.data.examples import Arrays, Examples, Record
from llm_jax.train.evaluate import filled

WINDOW = 32  # batches whose rows are sorted together
SHORTEST = 16  # positions of a batch


def predict(
    step: Callable[[Any, dict], dict],
    params: Any,
    examples: Examples,
    records: Iterable[Record | ConfigError],
    mesh: Mesh,
) -> Iterator[Record]:
    """Yields the answer to each record, in order; {"error": …} where there is none.

    Batches have data.batch_size rows and as many positions as the longest needs, rounded up to a
    power of two, so that few programs are compiled.

    Args:
      step: Setup.predict_step.
      records: the fields that are read, but for those to be predicted; or why one cannot be.
    """
    size = examples.config.data.batch_size
    for window in chunked(records, WINDOW * size):
        rows, errors = _rows(examples, window)
        found: list[list[Arrays]] = [[] for _ in window]
        for i, row in sorted(_predicted(step, params, rows, size, mesh), key=lambda pair: pair[0]):
            found[int(row[DOCUMENT])].append(row)
        for i, record in enumerate(window):
            yield {"error": errors[i]} if i in errors else examples.answer(record, found[i])


def chunked(items: Iterable, size: int) -> Iterator[list]:
    """Yields lists of `size` items each, the last of what is left."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def _rows(examples: Examples, records: Iterable) -> tuple[list[Arrays], dict[int, str]]:
    """The rows of all records that give some, and what is wrong with the others."""
    maker, rng = Chunks(examples, []), np.random.default_rng(0)
    rows, errors = [], {}
    for i, record in enumerate(records):
        try:
            if isinstance(record, ConfigError):
                raise record
            made = examples.examples(record, rng, None)
            rows += [maker.row([each | {DOCUMENT: np.array([i])}], rng) for each in made]
            if not made:
                errors[i] = "there is nothing to read in it"
        except ConfigError as error:
            errors[i] = str(error)
    return rows, errors


def _predicted(
    step: Callable, params: Any, rows: list[Arrays], size: int, mesh: Mesh
) -> Iterator[tuple[int, Arrays]]:
    """The place of each row, and what is predicted of it; the shortest first."""
    ends = ("segment_ids", "encoder_segment_ids")
    length = lambda row: sum(int((row[name] > 0).sum()) for name in ends if name in row)
    order = sorted(range(len(rows)), key=lambda i: length(rows[i]))
    for places in chunked(order, size):
        batch = {name: np.stack([rows[i][name] for i in places]) for name in rows[places[0]]}
        batch = {k: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)])
                 for k, x in _trimmed(batch).items()}  # fmt: skip
        out = jax.device_get(step(params, sharding.put(filled(batch, mesh), mesh)))
        for n, i in enumerate(places):
            yield i, {name: values[n] for name, values in out.items()}


def _trimmed(batch: Arrays) -> Arrays:
    """Cuts off positions that are padding in all rows."""
    def side(name: str) -> str:
        return "encoder_" if name.startswith("encoder_") else ""

    real = {side(name): x > 0 for name, x in batch.items() if name.endswith("segment_ids")}
    whole = {name: x.shape[1] for name, x in real.items()}
    kept = {name: max(SHORTEST, 1 << int(x.sum(1).max() - 1).bit_length()) for name, x in real.items()}
    fits = lambda name, x: x.ndim > 1 and x.shape[1] == whole.get(side(name))
    return {name: x[:, : kept[side(name)]] if fits(name, x) else x for name, x in batch.items()}

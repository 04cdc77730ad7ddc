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
        for row in _predicted(step, params, rows, size, mesh):
            found[int(row[DOCUMENT])].append(row)
        for i, record in enumerate(window):
            yield {"error": errors[i]} if i in errors else examples.answer(record, found[i])


def written(
    write: Callable[[Any, list[Record]], list[Record]],
    params: Any,
    records: Iterable[Record | ConfigError],
    size: int,
) -> Iterator[Record]:
    """`predict` of an objective whose answers are texts; write: Setup.writer."""
    for window in chunked(records, WINDOW * size):
        answers = iter(write(params, [x for x in window if not isinstance(x, ConfigError)]))
        for record in window:
            wrong = isinstance(record, ConfigError)
            yield {"error": str(record)} if wrong else next(answers)


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
) -> list[Arrays]:
    """What is predicted of each row."""
    masks = ("segment_ids", "encoder_segment_ids")
    lengths = [sum(int((row[name] > 0).sum()) for name in masks if name in row) for row in rows]
    found: list[Arrays] = [{}] * len(rows)
    for places in chunked(np.argsort(lengths, kind="stable"), size):
        batch = _trimmed([rows[i] for i in places], size)
        out = jax.device_get(step(params, sharding.put(filled(batch, mesh), mesh)))
        for n, i in enumerate(places):
            found[i] = {name: values[n] for name, values in out.items()}
    return found


def _trimmed(rows: list[Arrays], size: int) -> Arrays:
    """A batch of `size` rows, without the positions that are padding in all of them."""
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    fill = [(0, size - len(rows))]
    batch = {k: np.pad(x, fill + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()}
    for side in ("", "encoder_"):
        real = batch.get(f"{side}segment_ids", np.ones((1, 1))) > 0
        most, longest = real.shape[1], int(real.sum(1).max())
        kept = min(most, max(SHORTEST, 1 << (longest - 1).bit_length()))
        for name, x in batch.items():
            if name.startswith("encoder_") == bool(side) and x.ndim > 1 and x.shape[1] == most:
                batch[name] = x[:, :kept]
    return batch

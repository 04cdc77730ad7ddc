"""Batch inference: predictions for records, in order, in batches of rows of similar length."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax import objectives, sharding
from llm_jax.config import ConfigError
from llm_jax.data import fields
from llm_jax.data.chunks import DOCUMENT, Chunks
from llm_jax.data.examples import Arrays, Examples, Record
from llm_jax.data.lengths import stacked, trimmed
from llm_jax.models import Model
from llm_jax.objectives import Objective
from llm_jax.train.evaluate import filled
from llm_jax.train.state import make_eval_step

WINDOW = 32  # batches whose rows are sorted by length together


def answerer(
    model: Model, objective: Objective, examples: Examples, mesh: Mesh | None = None
) -> Callable[[Any, list[Record]], list[Record]]:
    """Returns a function (params, records) -> predictions, with {"error": …} where one fails.

    Batches have data.batch_size rows, padded to the longest one; lengths are rounded up as in
    training, so that few programs are compiled.

    Args:
      mesh: the mesh that splits batches; None: the devices of the parameters.
    """
    if objective.predict is None:
        able = ", ".join(o.name for o in objectives.OBJECTIVES.values() if o.predict or o.writes)
        raise ConfigError(f"objective.name={objective.name!r}: does not support prediction; these "
                          f"do: {able}. To continue prompts: launch.py generate")
    eval_step = make_eval_step(model, objective, examples.config)
    step = jax.jit(lambda params, batch: eval_step(params, batch)[2])

    def answer(params: Any, records: list[Record]) -> list[Record]:
        rows, errors = _rows(examples, records)
        predicted: list[list[Arrays]] = [[] for _ in records]
        for row in _predicted(step, params, rows, examples.config.data.batch_size, mesh):
            predicted[int(row[DOCUMENT])].append(row)
        each = enumerate(zip(records, predicted, strict=True))
        return [{"error": errors[i]} if i in errors else examples.answer(*x) for i, x in each]

    return answer


def document(examples: Examples, record: Record, where: str) -> Record | ConfigError:
    """Returns the input fields of a record, without labels, or the error for an invalid one.

    A field is read from the column data.FIELD_column or, without it, the column of its own name;
    the first field also from "text", the name of plain lines.
    """
    data, columns = examples.config.data, {}
    names = examples.columns(examples.config)
    for name in names:
        choice = (name, examples.stands_in.get(name, name))
        pairs = ((x, column) for x in choice for column in (data[f"{x}_column"], x))
        present = (pair for pair in pairs if pair[1] in record)
        if name not in examples.gold:
            plain = name == names[0] and "text" in record
            columns |= [next(present, (name, "text" if plain else data[f"{name}_column"]))]
    try:
        return fields.document(record, columns, where)
    except ConfigError as error:
        return error


def predict(
    answer: Callable[[Any, list[Record]], list[Record]], params: Any,
    records: Iterable[Record | ConfigError], size: int,
) -> Iterator[Record]:
    """Yields a prediction for each record, in order; {"error": …} for invalid records.

    Args:
      answer: see `answerer`; or Setup.writer, for objectives that generate text.
      records: see `document`.
      size: batch size.
    """
    for window in chunked(records, WINDOW * size):
        answers = iter(answer(params, [x for x in window if not isinstance(x, ConfigError)]))
        for record in window:
            refused = isinstance(record, ConfigError)
            yield {"error": str(record)} if refused else next(answers)


def chunked(items: Iterable, size: int) -> Iterator[list]:
    """Yields lists of `size` items; the last one may be shorter."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def _rows(examples: Examples, records: Iterable) -> tuple[list[Arrays], dict[int, str]]:
    """Returns the rows of all valid records, and the errors of the others."""
    maker, rng = Chunks(examples, []), np.random.default_rng(0)
    rows, errors = [], {}
    for i, record in enumerate(records):
        try:
            made = examples.examples(record, rng, None)
            rows += [maker.row([each | {DOCUMENT: np.array([i])}], rng) for each in made]
            if not made:
                errors[i] = "the record has no text"
        except ConfigError as error:
            errors[i] = str(error)
    return rows, errors


def _predicted(
    step: Callable, params: Any, rows: list[Arrays], size: int, mesh: Mesh | None
) -> list[Arrays]:
    """Returns the prediction for each row."""
    masks = ("segment_ids", "encoder_segment_ids")
    lengths = [sum(int((row[name] > 0).sum()) for name in masks if name in row) for row in rows]
    predicted: list[Arrays] = [{}] * len(rows)
    for places in chunked(np.argsort(lengths, kind="stable"), size):
        some = trimmed([rows[i] for i in places])
        empty = {name: np.zeros_like(x) for name, x in some[0].items()}
        batch = stacked(some + [empty] * (size - len(some)))
        batch = batch if mesh is None else sharding.put(filled(batch, mesh), mesh)
        out = jax.device_get(step(params, batch))
        for n, i in enumerate(places):
            predicted[i] = {name: values[n] for name, values in out.items()}
    return predicted

"""Examples: an objective's conversion of documents to model inputs, and predictions to answers.

A document is a record: a dict of named fields, such as {"text": …}, {"source": …, "target": …},
{"text": …, "label": …} (data/fields.py describes them), {"parts": (Part, …)}, or
{"tokens": array} for text stored as tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from llm_jax.data.fields import Record
from llm_jax.data.tokenizers import Tokenizer

Arrays = dict[str, np.ndarray]
DECODER = ("tokens", "targets", "weights")  # what `decoder_fields` returns
Elsewhere = Callable[[int], np.ndarray]


class Part(NamedTuple):
    """A part of a document, and whether its tokens are predicted."""

    text: str
    scored: bool


class Examples:
    """Base class of an objective's examples, for a tokenizer and config. NumPy only.

    Attributes:
      reads: record fields to read; data.FIELD_column names the column of a file.
      fields: example fields, padded to the row length, except for `scalars`.
      around: number of special tokens of a row, for which a window leaves room.
      cut: the text is tokenised (s = [bos] + tokens + [eos], if `framed`) and cut into windows of
        `stride` tokens plus `overlap` tokens shared with the next window, which are passed to
        `examples`. Otherwise `examples` gets the record.
      parts: records of parts (synthetic tasks) are supported.
      chat_template: default for tokenizers without one.
      scalars: example fields that are one number, [B] in a batch.
      gold: record fields to predict; examples can be built without them.
      augments: fields that data.augment may change in training.
      stands_in: {field: alternative field that `launch.py predict` accepts}.
      too_long: what happens to texts that do not fit a row.
      row: (row, generator) -> the final packed row, for example after masking.
    """

    reads: tuple[str, ...] = ("text",)
    fields: tuple[str, ...] = ("tokens",)
    around = 0
    cut = True
    parts = False
    framed = False
    chat_template: str | None = None
    overlap = 0
    scalars: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    augments: tuple[str, ...] = ()
    stands_in: Mapping[str, str] = {}  # noqa: RUF012
    too_long = "cut"
    row: Callable[[Arrays, np.random.Generator], Arrays] | None = None

    def __init__(self, tokenizer: Tokenizer, config: ConfigDict):
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def columns(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns `reads` without the fields for which data.FIELD_column is empty."""
        return tuple(name for name in cls.reads if config.data[f"{name}_column"])

    @classmethod
    def specials(cls, config: ConfigDict) -> tuple[str, ...]:
        """Returns the special tokens that a tokenizer trained for this objective must have."""
        return ()

    @classmethod
    def lengths(cls, config: ConfigDict) -> dict[str, int]:
        """Returns the row length of each of `fields`; types only if the model uses them."""
        without = () if config.model.type_vocab_size > 1 else ("types",)
        return {name: config.model.max_length for name in cls.fields if name not in without}

    @classmethod
    def predicted(cls, config: ConfigDict) -> int:
        """Returns the number of positions per row that pass through the output matrix; 0: all."""
        return cls.lengths(config)["tokens"]

    def room(self, counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Returns {description: (tokens that a record needs, capacity)}.

        counts: tokens of each field of the record, without special tokens.
        """
        return {"texts": (sum(counts.values()) + len(counts) + 1, self.config.model.max_length)}

    @property
    def stride(self) -> int:
        """Number of new tokens per window."""
        return self.config.model.max_length - self.around

    def examples(
        self, piece: np.ndarray | Record, rng: np.random.Generator, elsewhere: Elsewhere | None
    ) -> list[Arrays]:
        """Returns the examples for a window or record: dicts of 1-D fields, possibly none.

        `elsewhere(n)` draws up to n tokens from a random position in another document.
        """
        example = self.example(piece, rng, elsewhere)
        return [] if example is None else [example]

    def example(self, piece, rng, elsewhere) -> Arrays | None:
        """Returns the only example of a window or record; None drops it."""
        raise NotImplementedError

    def answer(self, record: Record, rows: list[Arrays]) -> Record:
        """Returns the prediction for a record, as JSON values.

        rows: the outputs of the objective's `predict` for the record's examples, in order.
        """
        raise NotImplementedError

    def ask(self, record: Record, new: int) -> Any:
        """Returns the prompt for generation, text or messages, leaving room for `new` tokens."""
        raise NotImplementedError

    def score(self, records: Sequence[Record], answers: Sequence[Record]) -> dict[str, float]:
        """Returns the task scores of a dataset from records with gold values and their answers."""
        raise NotImplementedError


def joined(*parts: Sequence[int]) -> np.ndarray:
    """Concatenates sequences of ids, which may be empty, to int32 [n]."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def apart(row: Arrays, rng: np.random.Generator) -> Arrays:
    """Adds segments and positions to a row of several texts, numbered by side [T]."""
    side, places = row["side"], np.arange(len(row["side"]))
    _, first, text = np.unique(side, return_index=True, return_inverse=True)
    positions = np.where(side > 0, places - first[text], 0).astype(np.int32)
    return row | {"segment_ids": side, "positions": positions}


def decoder_fields(s: np.ndarray) -> Arrays:
    """Returns the fields of next-token prediction: tokens = s[:-1], targets = s[1:], weights 1."""
    return {"tokens": s[:-1], "targets": s[1:], "weights": np.ones(len(s) - 1, np.float32)}

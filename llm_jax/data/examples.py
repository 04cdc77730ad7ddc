"""Examples: what an objective makes of documents for the input pipeline, and of predictions.

A document is a record: a dict of named fields, such as {"text": …}, {"source": …, "target": …},
{"text": …, "label": …} (data/fields.py says what each holds), {"parts": (Part, …)}, or
{"tokens": array} of text that is stored as tokens.
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
    """A piece of a document, and whether its tokens are to be predicted."""

    text: str
    scored: bool


class Examples:
    """The examples that an objective makes of documents, for one tokenizer. NumPy only.

    Attributes:
      reads: fields of a record that are read; data.FIELD_column names the column of a file.
      fields: fields of an example that are padded to a row, `scalars` excepted.
      around: special tokens of a row, which a window leaves room for.
      cut: a document's text is tokenised (s = [bos] + tokens + [eos], if `framed`) and cut in
        windows of `stride` tokens and `overlap` more that the next window has too; `examples` is
        given a window. Else it is given the record.
      parts: records of parts, as a task's are, can be read.
      chat_template: of a tokenizer that has none.
      scalars: fields of an example that are one number: [B] in a batch.
      gold: fields of a record that are to be predicted; an example is made without them, too.
      augments: fields whose words data.augment may change in training.
      stands_in: {field: another one that `launch.py predict` takes in its place}.
      too_long: what becomes of texts that a row has no room for.
      row: (row, generator) -> the packed row, finished: masked, say.
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
        """Returns `reads` without those that data.FIELD_column leaves empty."""
        return tuple(name for name in cls.reads if config.data[f"{name}_column"])

    @classmethod
    def specials(cls, config: ConfigDict) -> tuple[str, ...]:
        """Special tokens that a tokenizer trained for this objective must have."""
        return ()

    @classmethod
    def lengths(cls, config: ConfigDict) -> dict[str, int]:
        """Returns the length in a row of each of `fields`; types are for a model that has some."""
        without = () if config.model.type_vocab_size > 1 else ("types",)
        return {name: config.model.max_length for name in cls.fields if name not in without}

    @classmethod
    def predicted(cls, config: ConfigDict) -> int:
        """Positions of a row that go through the output matrix."""
        return cls.lengths(config)["tokens"]

    def room(self, counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Returns {what: (tokens that a record needs, tokens that there is room for)}.

        counts: tokens of each of the record's fields; special tokens come to these.
        """
        return {"texts": (sum(counts.values()) + len(counts) + 1, self.config.model.max_length)}

    @property
    def stride(self) -> int:
        """New tokens in a window."""
        return self.config.model.max_length - self.around

    def examples(
        self, piece: np.ndarray | Record, rng: np.random.Generator, elsewhere: Elsewhere | None
    ) -> list[Arrays]:
        """Returns the examples made of a window or record: none, one, or several of 1-D fields.

        `elsewhere(n)` draws up to n tokens from a random place in another document.
        """
        example = self.example(piece, rng, elsewhere)
        return [] if example is None else [example]

    def example(self, piece, rng, elsewhere) -> Arrays | None:
        """Returns the one example made of a window or record; None drops it."""
        raise NotImplementedError

    def answer(self, record: Record, rows: list[Arrays]) -> Record:
        """Returns the prediction for a record, as JSON values.

        rows: what the objective's `predict` gives of each of the record's examples, in order.
        """
        raise NotImplementedError

    def ask(self, record: Record, new: int) -> Any:
        """Returns a generative model's prompt, text or messages, with room for `new` tokens."""
        raise NotImplementedError

    def score(self, records: Sequence[Record], answers: Sequence[Record]) -> dict[str, float]:
        """Returns the metrics of a set, of records with their gold values and of their answers."""
        raise NotImplementedError


def joined(*parts: Sequence[int]) -> np.ndarray:
    """Returns the ids of several sequences, any of which may be empty, as one: int32 [n]."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def apart(row: Arrays, rng: np.random.Generator) -> Arrays:
    """Finishes a row of several texts, by their numbers, side [T]: segments and positions."""
    side, places = row["side"], np.arange(len(row["side"]))
    _, first, text = np.unique(side, return_index=True, return_inverse=True)
    positions = np.where(side > 0, places - first[text], 0).astype(np.int32)
    return row | {"segment_ids": side, "positions": positions}


def decoder_fields(s: np.ndarray) -> Arrays:
    """Each token predicts the next: tokens = s[:-1], targets = s[1:], weights 1."""
    return {"tokens": s[:-1], "targets": s[1:], "weights": np.ones(len(s) - 1, np.float32)}

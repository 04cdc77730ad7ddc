"""Documents that are read as they are needed, from a random-access source; permutations of them."""

import copy
import json
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import fields
from llm_jax.data.fields import Columns, Names, Record
from llm_jax.data.tokenizers import Tokenizer


def permuted(place: int, count: int, seed: int) -> int:
    """Returns where a permutation of `count`, decided by `seed`, has `place`; holds nothing."""
    return index_shuffle(place, max_index=count - 1, seed=seed % 2**32, rounds=4)


def tokens_about(docs: Sequence[Record]) -> float:
    """Returns the tokens of documents, about: four characters each."""
    if isinstance(docs, list):
        return sum(len(text) for doc in docs for text in fields.texts(doc)) / 4
    return docs.mean * len(docs)


class Lazy(Sequence):
    """Documents read one by one, or many at once, from a random-access source.

    Args:
      index: places in a fixed permutation of the source, of which these documents are; None: all,
        as they lie.
      mean: tokens of a document, about.
      names: of labels that the source has as numbers.
    """

    def __init__(self, source, columns: Columns, index: range | None = None, mean: float = 1024,
                 names: Names | None = None):
        self.source, self.columns, self.index, self.mean = source, columns, index, mean
        self.names = names

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)

    def __getitem__(self, i: int) -> Record:
        return self.read([i])[0]

    def read(self, places: Sequence[int]) -> list[Record]:
        """Returns the documents at `places`."""
        index = range(len(self)) if self.index is None else self.index
        where = [index[i] for i in places]  # IndexError beyond the end
        if self.index is not None:
            where = [permuted(place, len(self.source), 0) for place in where]
        many = getattr(self.source, "__getitems__", None)
        records = many(where) if many else [self.source[i] for i in where]
        return [self._document(record) for record in records]

    def take(self, index: range) -> "Lazy":
        """Returns a part of all documents, by their places in a fixed permutation."""
        part = copy.copy(self)
        part.index = index
        return part

    def _document(self, record) -> Record:
        return fields.document(record, self.columns, names=self.names)


class Tokens(Lazy):
    """Documents that are stored as the tokens of `tokenizer`, which `config` describes."""

    def __init__(self, source, tokenizer: Tokenizer, config: dict, mean: float):
        super().__init__(source, {}, mean=mean)
        self.tokenizer, self.config = tokenizer, config

    def check(self, tokenizer: Tokenizer, key: str) -> None:
        """Raises ConfigError where a run's tokenizer is not the one that made the tokens."""
        if tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise ConfigError(f"{key}: is stored as tokens of another tokenizer than the run's; "
                              "prepare it again with the run's --config, or train on its text")

    def its_own(self, config: ConfigDict) -> Tokenizer:
        """Returns the tokenizer, of a run that asks for the like; ConfigError if it does not."""
        asked = json.loads(json.dumps(config.to_dict()))
        differ = [f"tokenizer.{key}: {self.config.get(key)!r} there, {value!r} here"
                  for key, value in asked.items() if self.config.get(key) != value]
        if differ:
            raise ConfigError(f"data.train: is stored as tokens ({'; '.join(differ)}); use its "
                              "values, or prepare it again with the run's --config")
        return self.tokenizer

    def _document(self, record: bytes) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2  # like TFDS itself, not for every run

        # Not TFDS's own way, which takes ten times as long.
        feature = tf_example_pb2.Example.FromString(record).features.feature["tokens"]
        return {"tokens": np.frombuffer(feature.bytes_list.value[0], self.tokenizer.dtype)}

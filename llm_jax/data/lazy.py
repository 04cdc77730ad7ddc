"""Lazily read documents: random-access sources and mixtures of sources."""

import bisect
import copy
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
from grain.experimental import index_shuffle
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import fields
from llm_jax.data.fields import Columns, Names, Record
from llm_jax.data.tokenizers import Tokenizer

SMALL = 2**14  # permutations up to this size are stored, which is faster than computing them
TIMES = 10  # minimum documents of the rarest source per epoch


def permuted(place: int, count: int, seed: int) -> int:
    """Returns the index at `place` of a random permutation of `count`, without storing it."""
    return index_shuffle(place, max_index=count - 1, seed=seed % 2**32, rounds=4)


def tokens_about(docs: Sequence[Record]) -> float:
    """Estimates the number of tokens of documents, at four characters per token."""
    if isinstance(docs, list):
        return sum(len(text) for doc in docs for text in fields.texts(doc)) / 4
    return docs.mean * len(docs)


class Lazy(Sequence):
    """Documents read on access from a random-access source.

    Args:
      index: range of a fixed permutation of the source; None: all documents, in stored order.
      mean: approximate tokens per document.
      names: names of labels that the source stores as numbers.
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
        """Returns the documents at `places`, in one call to the source."""
        index = range(len(self)) if self.index is None else self.index
        where = [index[i] for i in places]  # IndexError beyond the end
        if self.index is not None:
            where = [permuted(place, len(self.source), 0) for place in where]
        many = getattr(self.source, "__getitems__", None)
        records = many(where) if many else [self.source[i] for i in where]
        return [self._document(record) for record in records]

    def take(self, index: range) -> "Lazy":
        """Returns the documents in a range of a fixed permutation of the source."""
        part = copy.copy(self)
        part.index = index
        return part

    def _document(self, record) -> Record:
        return fields.document(record, self.columns, names=self.names)


class Tokens(Lazy):
    """Documents stored as tokens of `tokenizer`, whose settings are `config`."""

    def __init__(self, source, tokenizer: Tokenizer, config: dict, mean: float):
        super().__init__(source, {}, mean=mean)
        self.tokenizer, self.config = tokenizer, config

    def check(self, tokenizer: Tokenizer, key: str) -> None:
        """Raises ConfigError if a run's tokenizer differs from that of the tokens."""
        if tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise ConfigError(f"{key}: is stored as tokens of a tokenizer other than the run's; "
                              "prepare it again with the run's --config, or train on its text")

    def its_own(self, config: ConfigDict) -> Tokenizer:
        """Returns the tokenizer; ConfigError if the config asks for a different one."""
        asked = json.loads(json.dumps(config.to_dict()))
        differ = [f"tokenizer.{key}: {self.config.get(key)!r} there, {value!r} here"
                  for key, value in asked.items() if self.config.get(key) != value]
        if differ:
            raise ConfigError(f"data.train: is stored as tokens ({'; '.join(differ)}); use its "
                              "values, or prepare it again with the run's --config")
        return self.tokenizer

    def _document(self, record: bytes) -> Record:
        from tensorflow_datasets.proto import tf_example_pb2  # slow import

        # Not TFDS's parser, which is ten times slower.
        feature = tf_example_pb2.Example.FromString(record).features.feature["tokens"]
        return {"tokens": np.frombuffer(feature.bytes_list.value[0], self.tokenizer.dtype)}


def rates(data: ConfigDict, sizes: Sequence[int]) -> np.ndarray:
    """Returns the mixing rates of sources with these numbers of documents.

    data.weights, or examples-proportional mixing r = min(size, data.mixture_limit) with
    temperature T, r^(1/T) (Raffel 2020, https://arxiv.org/abs/1910.10683, section 3.5.2).
    """
    if data.weights:
        if len(data.weights) != len(sizes):
            raise ConfigError(f"data.weights={data.weights}: has {len(data.weights)} weights for "
                              f"{len(sizes)} sources in data.train")
        share = np.array(data.weights, np.float64)
    else:
        share = np.minimum(sizes, data.mixture_limit or np.inf) ** (1 / data.mixture_temperature)
    return share / share.sum()


class Mixture(Lazy):
    """A mixture of sources at the rates of `data`; an epoch has at least the size of all sources.

    Place p is document p % len(self) of epoch p // len(self). Each source is read in a permutation,
    and in a new one after its last document, so that the order is deterministic and stateless.

    Attributes:
      shares: {source: its fraction of the documents}.
    """

    def __init__(self, parts: dict[str, Sequence[Record]], data: ConfigDict, seed: int):
        self.parts, self.seed = list(parts.values()), seed
        for name, part in parts.items():
            if isinstance(part, Tokens) or not len(part):
                problem = "is stored as tokens" if len(part) else "has no document to train on"
                raise ConfigError(f"data.train: {name} {problem}; it cannot be mixed with others")
        sizes = [len(part) for part in self.parts]
        share = rates(data, sizes)
        # Large enough for TIMES documents of the rarest source.
        count = max(sum(sizes), int(np.ceil(TIMES / share.min())))
        self.starts = [0, *np.round(np.cumsum(share) * count).astype(np.int64).tolist()]
        self.shares = dict(zip(parts, share.tolist(), strict=True))
        self.mean = float(share @ [tokens_about(part) / len(part) for part in self.parts])

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[Record]:
        """Iterates over every document of every source once."""
        return itertools.chain(*self.parts)

    def __getitem__(self, place: int) -> Record:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.read([place])[0]

    def read(self, places: Sequence[int]) -> list[Record]:
        """Returns the documents at places, which continue after the first epoch."""
        documents: list[Record] = [{}] * len(places)
        where = [self._where(place) for place in places]
        for number, part in enumerate(self.parts):
            mine = [i for i, (source, _) in enumerate(where) if source == number]
            index = [where[i][1] for i in mine]
            docs = part.read(index) if isinstance(part, Lazy) else [part[i] for i in index]
            for i, doc in zip(mine, docs, strict=True):
                documents[i] = doc
        return documents

    def source(self, place: int) -> int:
        """Returns the index of the source of a place."""
        return bisect.bisect_right(self.starts, place % len(self)) - 1

    def drawn(self, state: dict) -> dict[str, float]:
        """Returns {"documents/NAME", "tokens/NAME": fraction of a source in the batches so far}.

        state: the state of all streams of batches. A document counts where it starts. Counts from
        before a checkpoint without counts are missing.
        """
        streams = state["streams"].values()
        none = np.zeros((2, len(self.shares)))
        counts = sum((np.array(x.get("drawn", none)) for x in streams), none)
        shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).tolist()
        return {f"{unit}/{name}": share
                for unit, row in zip(("documents", "tokens"), shares, strict=True)
                for name, share in zip(self.shares, row, strict=True)}  # fmt: skip

    def _where(self, place: int) -> tuple[int, int]:
        """Returns the source and the document index in it."""
        source = self.source(place)
        epoch, place = divmod(place, len(self))
        start, end = self.starts[source : source + 2]
        size = len(self.parts[source])
        turn, nth = divmod(epoch * (end - start) + place - start, size)
        if size < SMALL:
            return source, _order(size, self.seed + turn)[nth]
        return source, permuted(nth, size, self.seed + turn)


@functools.lru_cache(64)
def _order(size: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(size).tolist()

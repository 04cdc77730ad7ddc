"""Mixtures of sources: documents of each at a rate, by their place and without a draw (T5)."""

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.fields import Record
from llm_jax.data.lazy import Lazy, Tokens, permuted, tokens_about

SMALL = 2**14  # up to so many documents a permutation is held: computing each place is slower
TIMES = 10  # documents of the rarest source in an epoch, at least


def rates(data: ConfigDict, sizes: Sequence[int]) -> np.ndarray:
    """Returns the share of each source among the documents, of sources of so many documents.

    data.weights, or examples-proportional, r = min(size, data.mixture_limit), at a temperature T:
    r^(1/T) (Raffel 2020, https://arxiv.org/abs/1910.10683, section 3.5.2).
    """
    if data.weights:
        if len(data.weights) != len(sizes):
            raise ConfigError(f"data.weights={data.weights}: {len(data.weights)} of them for "
                              f"{len(sizes)} sources in data.train")
        share = np.array(data.weights, np.float64)
    else:
        share = np.minimum(sizes, data.mixture_limit or np.inf) ** (1 / data.mixture_temperature)
    return share / share.sum()


class Mixture(Lazy):
    """Documents of several sources at the rates of `data`; an epoch has as many as all, or more.

    Place p is that of document p % len(self) of epoch p // len(self): a source's documents follow
    each other in a permutation, and in a new one when it has no more. So nothing is drawn and no
    state is kept.

    Attributes:
      shares: {source: its share of the documents}.
    """

    def __init__(self, parts: dict[str, Sequence[Record]], data: ConfigDict, seed: int):
        self.parts, self.seed = list(parts.values()), seed
        for name, part in parts.items():
            if isinstance(part, Tokens) or not len(part):
                problem = "is stored as tokens" if len(part) else "has no document to train on"
                raise ConfigError(f"data.train: {name} {problem}; it cannot be mixed with others")
        sizes = [len(part) for part in self.parts]
        share = rates(data, sizes)
        # So many documents that even the rarest source has TIMES of them.
        count = max(sum(sizes), int(np.ceil(TIMES / share.min())))
        self.starts = [0, *np.round(np.cumsum(share) * count).astype(np.int64).tolist()]
        self.shares = dict(zip(parts, share.tolist(), strict=True))
        self.mean = float(share @ [tokens_about(part) / len(part) for part in self.parts])

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[Record]:
        """Every document of every source, once."""
        return itertools.chain(*self.parts)

    def __getitem__(self, place: int) -> Record:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.read([place])[0]

    def read(self, places: Sequence[int]) -> list[Record]:
        """Returns the documents at places, which go on behind the first epoch."""
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
        """Returns the number of the source that has the document at a place."""
        return bisect.bisect_right(self.starts, place % len(self)) - 1

    def drawn(self, state: dict) -> dict[str, float]:
        """Returns {"documents/NAME", "tokens/NAME": a source's share in the batches until now}.

        state: of all streams of batches. A document counts where it begins. What was drawn before
        a checkpoint that has no counts is not known.
        """
        streams = state["streams"].values()
        none = np.zeros((2, len(self.shares)))
        counts = sum((np.array(x.get("drawn", none)) for x in streams), none)
        shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).tolist()
        return {f"{unit}/{name}": share
                for unit, row in zip(("documents", "tokens"), shares, strict=True)
                for name, share in zip(self.shares, row, strict=True)}  # fmt: skip

    def _where(self, place: int) -> tuple[int, int]:
        """The source and the document in it."""
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

"""Poisson sampling of documents for differential privacy, with one chunk per batch."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import gammaincinv

from llm_jax.config import ConfigError
from llm_jax.data.chunks import Chunks, Rows, padding
from llm_jax.data.examples import Arrays, Examples, Record

OVERFLOW = 1e-15  # probability per step that more documents are drawn than a batch has rows


def rate(config: ConfigDict, documents: int) -> float:
    """Returns the sampling probability of a document per step.

    The largest rate for which more than data.batch_size documents are drawn with probability
    OVERFLOW at most. The binomial tail is bounded by that of a Poisson distribution.
    """
    return min(float(gammaincinv(config.data.batch_size + 1, OVERFLOW)) / documents, 1.0)


class Sampled(Chunks):
    """Poisson-sampled batches: chunk c is the batch of step c, with each document at `rate`.

    A document gives one row; of several, a random one each time. The remaining rows up to
    data.batch_size are padding. Everything is a function of (seed, c).
    """

    def __init__(self, examples: Examples, docs: Sequence[Record], seed: int):
        super().__init__(examples, docs, seed)
        self._rate, rng = rate(examples.config, len(docs)), np.random.default_rng(0)
        first = next((x for i in range(len(docs)) for x in self._made([i], rng)), None)
        if first is None:
            raise ConfigError("data.train: no document yields an example; each is too short, or "
                              "has nothing to predict")
        row, pad_id = self.row([first], rng), examples.tokenizer.pad_id
        self._blank = {name: np.full_like(x, padding(name, pad_id)) for name, x in row.items()}

    def rows(self, number: int) -> Rows:
        """Returns the rows of a batch."""
        rng = np.random.default_rng((self._seed, number))
        drawn = np.flatnonzero(rng.random(len(self._docs)) < self._rate)
        room = self._examples.config.data.batch_size
        drawn = rng.permutation(drawn)[:room].tolist()
        several = (self._made([place], rng) for place in drawn)
        chosen = [some[rng.integers(len(some))] for some in several if some]

        def row(i: int) -> Arrays:
            own = np.random.default_rng((self._seed, number, i))
            return self.row([chosen[i]], own) if i < len(chosen) else self._blank

        return Rows(room, row)

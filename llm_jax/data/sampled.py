"""Poisson sampling of documents, which differential privacy counts on: a chunk is a batch."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import gammaincinv

from llm_jax.config import ConfigError
from llm_jax.data.chunks import Chunks, Rows, padding
from llm_jax.data.examples import Arrays, Examples, Record

OVERFLOW = 1e-15  # of a step: more documents drawn than a batch has rows


def rate(config: ConfigDict, documents: int) -> float:
    """Returns the probability of each document to be in a step.

    The largest at which more than data.batch_size are drawn with probability OVERFLOW at most: the
    number drawn is binomial, whose tail is below that of the Poisson distribution of its mean.
    """
    return min(float(gammaincinv(config.data.batch_size + 1, OVERFLOW)) / documents, 1.0)


class Sampled(Chunks):
    """Chunk c is the batch of step c: each document is in it with probability `rate`, by itself.

    A document gives one row: if it is made into several, one of them, drawn anew each time. What is
    left of data.batch_size rows, which come last, is padding. All is a function of (seed, c).
    """

    def __init__(self, examples: Examples, docs: Sequence[Record], seed: int):
        super().__init__(examples, docs, seed)
        self._rate, rng = rate(examples.config, len(docs)), np.random.default_rng(0)
        first = next((x for i in range(len(docs)) for x in self._made([i], rng)), None)
        if first is None:
            raise ConfigError("data.train: no document gives an example; each is too short, or has "
                              "nothing to predict")
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

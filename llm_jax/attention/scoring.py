"""How products of queries and keys become attention weights: scale, bias, cap, sinks, dropout."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.bias import Bias

HIDDEN = -1e30  # finite: a query that sees nothing averages the values instead of giving NaN


def _static(default):
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scoring:
    """softmax(softcap(scale q k) + bias, over the visible keys and the sink), then dropout.

    Kinds without a softmax take of these what they support.

    Attributes:
      bias: by distance (Raffel 2020; Press 2022).
      sinks: [N], the score of a key without a value, seen by all (gpt-oss, 2025; Miller 2023).
      dropout_key: random key; None: no dropout.
      dropout_rate: share of the weights zeroed.
      scale: of the products; None: H^-0.5.
      softcap: c tanh(s / c) keeps scores within -c and c (Gemma 2, 2024, section 2); None: none.
    """

    bias: Bias | None = None
    sinks: Array | None = None
    dropout_key: Array | None = None
    dropout_rate: float = _static(0.0)
    scale: float | None = _static(None)
    softcap: float | None = _static(None)

    @property
    def dropout(self) -> bool:
        return self.dropout_key is not None and self.dropout_rate > 0

    def apart(self, number: int | Array) -> "Scoring":
        """The same with another dropout key, folded with `number`."""
        key = self.dropout_key
        key = key if key is None else jax.random.fold_in(key, number)
        return dataclasses.replace(self, dropout_key=key)

    @property
    def asked(self) -> set[str]:
        """What a kind of attention must support to follow it."""
        given = {
            "bias": self.bias is not None,
            "sinks": self.sinks is not None,
            "dropout": self.dropout,
            "softcap": self.softcap is not None,
        }
        return {name for name, is_set in given.items() if is_set}

    def scores(self, products: Array, H: int, bias: Array | None = None) -> Array:
        """products [B, K, G, ..., S] of heads of size H, and a bias of that shape -> scores."""
        scores = products * (H**-0.5 if self.scale is None else self.scale)
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        return scores if bias is None else scores + bias

    def weights(self, scores: Array, visible: Array | None, block: int | Array = 0) -> Array:
        """Scores [B, K, G, ..., S] -> weights; each `block` has dropout of its own.

        visible: bool, broadcast against the scores; None: all.
        """
        if visible is not None:
            scores = jnp.where(visible, scores, HIDDEN)
        if self.sinks is None:
            weights = jax.nn.softmax(scores, axis=-1)
        else:
            sinks = self.sinks.reshape(*scores.shape[1:3], *(1,) * (scores.ndim - 3))
            total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - jnp.logaddexp(total, sinks))
        return self.drop(weights, block)

    def drop(self, weights: Array, block: int | Array = 0) -> Array:
        """Zeroes dropout_rate of the weights and scales up the others."""
        if not self.dropout:
            return weights
        key = self.apart(block).dropout_key
        kept = jax.random.bernoulli(key, 1 - self.dropout_rate, weights.shape)
        return jnp.where(kept, weights / (1 - self.dropout_rate), 0)


PLAIN = Scoring()

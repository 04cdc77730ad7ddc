"""From query-key products to attention weights: scale, bias, soft cap, sinks, dropout."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import static

HIDDEN = -1e30  # finite, so that a query without visible keys averages values instead of NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bias:
    """Position bias of the scores by head and distance (T5's buckets, ALiBi).

    Stored by distance; never materialised for all pairs.

    Attributes:
      values: [N, 2 L - 1], for distances (key index - query index) from 1 - L to L - 1.
    """

    values: Array

    def tile(self, offset: int | Array, T: int, S: int) -> Array:
        """Returns [N, T, S]; `offset` is the distance of the first key from the first query.

        Distances beyond the table are clipped.
        """
        # Each row is the previous one shifted by one. Repeating T + S values and reshaping to rows
        # one shorter avoids a gather, whose gradient is a slow scatter.
        wide = jnp.pad(self.values, ((0, 0), (T + S, T + S)), mode="edge")
        zero = wide.shape[1] // 2 + offset
        away = jax.lax.dynamic_slice_in_dim(wide, zero - T, T + S, axis=1)  # from key 0, query T
        away = jnp.roll(away, -T, axis=1)  # distances 0 .. S - 1, then -T .. -1
        N = len(away)
        rows = jnp.broadcast_to(away[:, None], (N, T, T + S)).reshape(N, -1)
        return rows[:, : T * (T + S - 1)].reshape(N, T, T + S - 1)[..., :S]

    def block(self, offset: Array | None, start: int, T: int, first: int, S: int) -> Array:
        """Returns [1 or B, N, T, S] for T queries from `start` and S keys from `first`.

        offset: () or [B], index of the first query among the keys; None: 0.
        """
        if offset is None:
            return self.tile(first - start, T, S)[None]
        tiles = jax.vmap(lambda offset: self.tile(first - start - offset, T, S))
        return tiles(jnp.atleast_1d(offset))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scoring:
    """Attention weights: softmax(softcap(scale q k) + bias) over visible keys and sink, dropout.

    Variants without a softmax use the settings that they support.

    Attributes:
      bias: position bias (Raffel 2020; Press 2022).
      sinks: [N], the logit of a key without a value, always visible (gpt-oss, 2025; Miller 2023).
      dropout_key: random key; None: no dropout.
      dropout_rate: fraction of the weights dropped.
      scale: factor on the products; None: H^-0.5.
      softcap: c of c tanh(s / c) (Gemma 2, 2024, section 2); None: no cap.
    """

    bias: Bias | None = None
    sinks: Array | None = None
    dropout_key: Array | None = None
    dropout_rate: float = static(0.0)
    scale: float | None = static(None)
    softcap: float | None = static(None)

    @property
    def dropout(self) -> bool:
        return self.dropout_key is not None and self.dropout_rate > 0

    def apart(self, number: int | Array) -> "Scoring":
        """Returns a copy with `number` folded into the dropout key."""
        key = self.dropout_key
        key = key if key is None else jax.random.fold_in(key, number)
        return dataclasses.replace(self, dropout_key=key)

    @property
    def asked(self) -> set[str]:
        """Returns the names in ABILITIES that it requires."""
        given = {
            "bias": self.bias is not None,
            "sinks": self.sinks is not None,
            "dropout": self.dropout,
            "softcap": self.softcap is not None,
        }
        return {name for name, is_set in given.items() if is_set}

    def factor(self, H: int) -> float:
        """Returns the scale for heads of size H."""
        return H**-0.5 if self.scale is None else self.scale

    def scores(self, products: Array, H: int, bias: Array | None = None) -> Array:
        """Maps products [B, K, G, ..., S] of heads of size H, with a bias, to scores."""
        scores = products * self.factor(H)
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        return scores if bias is None else scores + bias

    def weights(self, scores: Array, visible: Array | None, block: int | Array = 0) -> Array:
        """Maps scores [B, K, G, ..., S] to weights; each `block` has its own dropout mask.

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
        """Applies dropout to the weights."""
        if not self.dropout:
            return weights
        key = self.apart(block).dropout_key
        kept = jax.random.bernoulli(key, 1 - self.dropout_rate, weights.shape)
        return jnp.where(kept, weights / (1 - self.dropout_rate), 0)


PLAIN = Scoring()

"""Talking-heads attention: heads mix scores before the softmax and weights after it."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows, scores
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, mix_scores: Array, mix_weights: Array,
) -> Array:
    """Returns [B, T, N, H]: (softmax(scores P) W) value, P and W [N, N] over the heads.

    Section 4 of Shazeer 2020, https://arxiv.org/abs/2003.02436, as many heads within as without.
    A query needs the scores of all heads at once; queries are taken in blocks.
    """
    N = query.shape[2]
    value = jnp.repeat(value, N // value.shape[2], axis=2)

    def rows(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        z = jnp.einsum("bnts,nm->bmts", z, mix_scores)
        visible = None if visible is None else visible[:, :, None]
        weights = scoring.weights(z[:, :, None], visible, start)
        weights = jnp.einsum("bnts,nm->bmts", weights[:, :, 0], mix_weights)
        return jnp.einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)

    return by_rows(rows, query)


def _identity(key, shape, dtype=jnp.float32):
    """Near the heads as they are, so that a model starts as one with ordinary attention."""
    return jnp.eye(*shape, dtype=dtype) + jax.random.normal(key, shape, dtype) * 0.02


VARIANT = Variant(
    attend,
    supports=able("-"),
    flops=lambda T, S, N, H: 4 * T * S * N * (H + N),
    memory=lambda T, S, N, H: T * N,
    source="Shazeer et al. 2020, https://arxiv.org/abs/2003.02436",
    weights=lambda N, K, H: {
        "mix_scores": Weight((N, N), ("heads", None), _identity),
        "mix_weights": Weight((N, N), ("heads", None), _identity),
    },
)

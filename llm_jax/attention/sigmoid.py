"""Sigmoid attention: each weight is the sigmoid of its score, without normalisation."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows, scores
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, max_length: int
) -> Array:
    """Returns [B, T, N, H]: sigmoid(scores - log max_length) value.

    Ramapuram 2024, https://arxiv.org/abs/2409.04431, section 3: the bias of minus the logarithm
    of the length keeps the weights' sum near that of a softmax at the start.
    """
    N = query.shape[2]
    value = jnp.repeat(value, N // value.shape[2], axis=2)

    def rows(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        weights = jax.nn.sigmoid(z - math.log(max_length))
        weights = weights if visible is None else jnp.where(visible, weights, 0)
        weights = scoring.drop(weights, start).astype(value.dtype)
        return jnp.einsum("bnts,bsnh->btnh", weights, value)

    return by_rows(rows, query)


VARIANT = Variant(
    attend,
    supports=able("- sinks"),
    flops=lambda T, S, N, H, max_length: 4 * T * S * N * H,
    memory=lambda T, S, N, H, max_length: T * N,
    source="Ramapuram et al. 2024, https://arxiv.org/abs/2409.04431",
    reads=("max_length",),
)

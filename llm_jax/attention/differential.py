"""Differential attention: the difference of two softmax attention maps, which cancels noise."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blockwise
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.scoring import PLAIN, Bias, Scoring
from llm_jax.attention.variant import Variant, Weight, able

START = 0.8  # initial lambda; the paper's depth schedule performs the same (its section 3.8)


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, lambda_q1: Array, lambda_k1: Array, lambda_q2: Array, lambda_k2: Array, scale: Array,
) -> Array:
    """Differential attention: (1 - 0.8) RMSNorm((softmax(q1 k1) - lambda softmax(q2 k2)) v).

    Section 2.1 of Ye 2024, https://arxiv.org/abs/2410.05258. Adjacent heads form a pair, whose
    values are one vector [2 H]; lambda = exp(q1 k1) - exp(q2 k2) + 0.8, from four vectors [H].

    Args:
      scale: [2 H], scale of the RMSNorm of each pair of heads.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    query, key = query.reshape(B, T, N // 2, 2, H), key.reshape(B, S, K // 2, 2, H)
    value = value.reshape(B, S, K // 2, 2 * H)

    def half(i):
        pick = lambda x: None if x is None else x[i::2]
        bias = scoring.bias and Bias(pick(scoring.bias.values))
        ours = dataclasses.replace(scoring.apart(i), bias=bias, sinks=pick(scoring.sinks))
        return blockwise.attend(query[..., i, :], key[..., i, :], value, mask, ours)

    share = jnp.exp(lambda_q1 @ lambda_k1) - jnp.exp(lambda_q2 @ lambda_k2) + START
    y = half(0).astype(jnp.float32) - share * half(1)
    return ((1 - START) * rms_norm(y, scale, EPSILON)).astype(value.dtype).reshape(B, T, N, H)


def _weights(N, K, H):
    if K % 2:
        raise ValueError(f"attention 'differential' needs an even number of key heads, got {K}")
    vector = Weight((H,), ("kv",), jax.nn.initializers.normal(0.1))
    names = "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"
    ones = Weight((2 * H,), ("kv",), jax.nn.initializers.ones)
    return dict.fromkeys(names, vector) | {"scale": ones}


VARIANT = Variant(
    attend,
    supports=able("- weights"),
    flops=lambda T, S, N, H: 6 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Ye et al. 2024, https://arxiv.org/abs/2410.05258",
    weights=_weights,
)

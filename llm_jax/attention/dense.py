"""Softmax attention, exactly (https://arxiv.org/abs/1706.03762, section 3.2)."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask

NEGATIVE = -1e30  # finite: a row with nothing visible averages all values instead of giving NaN


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Returns [B, T, N, H]: softmax(scale * query key^T + bias, over visible keys) value.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K divides N: query heads n // (N / K) share a key head.
      value: [B, S, K, H].
      mask: which keys each query sees.
      bias: [1 or B, N, T, S], added to the scaled scores; differentiable.
      scale: of the scores; None: H^-0.5.
      dropout_rate: share of attention weights zeroed, where a dropout_key is given.
      dropout_key: random key.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    scale = H**-0.5 if scale is None else scale
    grouped = query.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias.reshape(-1, K, N // K, T, S)
    visible = mask.dense(T, S)
    if visible is not None:
        scores = jnp.where(visible[:, :, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_key is not None and dropout_rate > 0:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
    output = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value)
    return output.reshape(B, T, N, H)

"""Softmax attention, exactly (https://arxiv.org/abs/1706.03762, section 3.2)."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask

HIDDEN = -1e30  # finite: a query that sees nothing averages the values instead of giving NaN
BLOCK, BLOCKS = 128, 8  # queries at a time: at least 128, in at most 8 blocks


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
    """Returns [B, T, N, H]: softmax(scale query key^T + bias, over the visible keys) value.

    Queries are taken in blocks, each with only those keys that its part of the mask can
    show: a causal mask costs half the operations and memory, a window still less.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K divides N: N / K consecutive query heads share a key head.
      value: [B, S, K, H].
      mask: which keys each query sees.
      bias: [1 or B, N, T, S], added to the scaled scores; differentiable.
      scale: of the scores; None: H^-0.5.
      dropout_rate: share of attention weights zeroed, where a dropout_key is given.
      dropout_key: random key.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    G = N // K
    scale = H**-0.5 if scale is None else scale
    # One transposition here: batch axes first is what every matrix product below wants.
    query = query.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if bias is not None:
        bias = bias.reshape(-1, K, G, T, S)

    def part(start: int, stop: int) -> Array:
        first, last = mask.span((start, stop), T, S)
        keys, values = key[:, :, first:last], value[:, :, first:last]
        scores = scale * jnp.einsum(
            "bkgth,bksh->bkgts",
            query[..., start:stop, :],
            keys,
            preferred_element_type=jnp.float32,
        )
        if bias is not None:
            scores += bias[..., start:stop, first:last]
        visible = mask.block((start, stop), (first, last))
        if visible is not None:
            scores = jnp.where(visible[:, :, None], scores, HIDDEN)
        weights = jax.nn.softmax(scores, axis=-1)
        if dropout_key is not None and dropout_rate > 0:
            random = jax.random.fold_in(dropout_key, start)
            kept = jax.random.bernoulli(random, 1 - dropout_rate, weights.shape)
            weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
        return jnp.einsum("bkgts,bksh->bkgth", weights.astype(value.dtype), values)

    size = T
    if mask.span((0, 1), T, S) != (0, S):
        size = max(BLOCK, -(-T // BLOCKS))
    parts = [part(start, min(start + size, T)) for start in range(0, T, size)]
    return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)

"""Softmax attention, exactly (https://arxiv.org/abs/1706.03762, section 3.2)."""

import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able

BLOCK, BLOCKS = 128, 8  # queries at a time: at least 128, in at most 8 blocks


def attend(query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN) -> Array:
    """Returns [B, T, N, H]: softmax(scale query key^T + bias, over the visible keys) value.

    Queries are taken in blocks, each with only those keys that its part of the mask can
    show: a causal mask costs half the operations and memory, a window still less.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H], K divides N: N / K consecutive query heads share a key head.
      value: [B, S, K, V]; V is H but where a kind says otherwise.
      mask: which keys each query sees.
      scoring: scale, cap, bias, sinks and dropout of the scores.
    """
    B, T, N, H = query.shape
    S, K, V = value.shape[1:]
    # One transposition here: batch axes first is what every matrix product below wants.
    query = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)

    def part(start: int, stop: int) -> Array:
        first, last = mask.span((start, stop), T, S) if mask.whole else (0, S)
        products = jnp.einsum(
            "bkgth,bksh->bkgts",
            query[..., start:stop, :],
            key[:, :, first:last],
            preferred_element_type=jnp.float32,
        )
        place = start, stop - start, first, last - first
        bias = scoring.bias and scoring.bias.block(mask.query_offset, *place)
        bias = None if bias is None else bias.reshape(-1, K, N // K, *bias.shape[2:])
        visible = mask.tile(*place)
        visible = None if visible is None else visible[:, :, None]
        weights = scoring.weights(scoring.scores(products, H, bias), visible, start)
        return jnp.einsum("bkgts,bksv->bkgtv", weights.astype(value.dtype), value[:, :, first:last])

    size = T
    if mask.whole and mask.span((0, 1), T, S) != (0, S):
        size = max(BLOCK, -(-T // BLOCKS))
    parts = [part(start, min(start + size, T)) for start in range(0, T, size)]
    return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, V)


VARIANT = Variant(
    attend,
    supports=able("-"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * S * N,
    source="Vaswani et al. 2017, https://arxiv.org/abs/1706.03762",
)

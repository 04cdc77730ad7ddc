"""Scaled dot-product attention (Vaswani 2017, https://arxiv.org/abs/1706.03762, section 3.2)."""

import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able

BLOCK, BLOCKS = 128, 8  # minimum queries per block; maximum number of blocks


def attend(query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN) -> Array:
    """Softmax attention [B, T, N, H]: softmax(scale query key^T + bias, visible keys) value.

    Processes queries in blocks, each with the range of keys that the mask allows: a causal mask
    halves operations and memory, a window reduces them further.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H]; K divides N: N / K consecutive query heads share a key head.
      value: [B, S, K, V]; V is usually H.
      mask: the visible keys of each query.
      scoring: scale, soft cap, bias, sinks and dropout.
    """
    B, T, N, H = query.shape
    S, K, V = value.shape[1:]
    # Transpose once: all matrix products below need the batch axes first.
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

"""Strided attention (Sparse Transformer) and dilated sliding windows."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blockwise, local
from llm_jax.attention.bias import Bias
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, stride: int
) -> Array:
    """Returns [B, T, N, H] as `dense.attend` under mask.stride, at a cost of T^2 / stride.

    A query sees keys a multiple of `stride` away (Child 2019, section 4.2, the second of its
    two heads; alternated with "local" it is the paper's strided pattern). Tokens are sorted by
    what their index leaves over, so that each such class is a sequence of its own.
    """
    return _attend(query, key, value, mask, scoring, stride, None)


def attend_dilated(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, stride: int, window: int,
) -> Array:
    """Returns `attend` where a query sees only the nearest `window` of those keys, itself included.

    A sliding window with gaps, linear in T (Beltagy 2020, https://arxiv.org/abs/2004.05150,
    section 3.1, "dilated sliding window").
    """
    return _attend(query, key, value, mask, scoring, stride, window)


def _attend(query, key, value, mask, scoring, stride, window):
    T, S = query.shape[1], key.shape[1]
    if not mask.whole or T != S or T <= stride:
        span = window and window * stride
        mask = dataclasses.replace(mask, stride=stride, window=span or mask.window)
        return blockwise.attend(query, key, value, mask, scoring)
    count = -(-T // stride)
    pad = count * stride - T
    segments = mask.query_segments
    if segments is None and pad:
        segments = jnp.ones((1, T), jnp.int32)

    def classes(x):  # [B, T, ...] -> [B stride, count, ...]
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], count, stride, *x.shape[2:]).swapaxes(1, 2)
        return x.reshape(-1, *x.shape[2:])

    if segments is not None:
        segments = classes(jnp.broadcast_to(segments, query.shape[:2]))
    if scoring.bias is not None:
        values = scoring.bias.values
        zero = values.shape[1] // 2
        scoring = dataclasses.replace(scoring, bias=Bias(values[:, zero % stride :: stride]))
    mask = Mask(segments, segments, causal=mask.causal, window=window)
    inner = local if window else blockwise
    y = inner.attend(*(classes(x) for x in (query, key, value)), mask, scoring)
    y = y.reshape(-1, stride, *y.shape[1:]).swapaxes(1, 2)
    return y.reshape(y.shape[0], count * stride, *y.shape[3:])[:, :T]


VARIANT = Variant(
    attend,
    supports=able("-"),
    flops=lambda T, S, N, H, stride: 4 * T * -(-S // stride) * N * H,
    memory=lambda T, S, N, H, stride: T * N,
    source="Child et al. 2019, https://arxiv.org/abs/1904.10509, section 4.2",
    reads=("stride",),
)
DILATED = Variant(
    attend_dilated,
    supports=able("-"),
    flops=lambda T, S, N, H, stride, window: 4 * T * min(-(-S // stride), 2 * window) * N * H,
    memory=lambda T, S, N, H, stride, window: T * min(-(-S // stride), 2 * window) * N,
    source="Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1",
    reads=("stride", "window"),
    reach=lambda stride, window: stride * (window - 1) + 1,
)

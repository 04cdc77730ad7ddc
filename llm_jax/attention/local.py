"""Local attention: sliding window, chunked, strided, dilated, with global tokens (Longformer)."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blockwise, dense
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import cut
from llm_jax.attention.scoring import PLAIN, Bias, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, window: int | None = None,
) -> Array:
    """Sliding window attention: `dense.attend` under mask.window, without [T, T] in memory.

    Queries are processed in blocks of `window`, each with the keys of its own block, the previous
    and, if bidirectional, the next (the "local" attention of Child 2019, section 4; the "locally
    banded" layers of Brown 2020, section 2.1). Prefix and cache, which need all keys, use
    `blockwise.attend`.

    Args:
      window: number of keys a query attends to backwards, itself included; None: mask.window.
    """
    mask = dataclasses.replace(mask, window=window or mask.window)
    return _attend(query, key, value, mask, scoring, mask.window)


def attend_chunked(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, window: int | None = None,
) -> Array:
    """Chunked attention: each query attends to its chunk of `window` keys and the previous one.

    If bidirectional, also to the next one: Reformer's local layers (Kitaev 2020, as published),
    without the authors' wrap-around from the last chunk to the first, which causal models mask.
    """
    mask = dataclasses.replace(mask, chunk=window or mask.chunk)
    return _attend(query, key, value, mask, scoring, mask.chunk)


def _attend(query, key, value, mask, scoring, size):
    if size is None or not mask.whole or key.shape[1] != query.shape[1]:
        return blockwise.attend(query, key, value, mask, scoring)
    return banded(query, key, value, mask, scoring, size)


def banded(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring, size: int
) -> Array:
    """Banded attention: `dense.attend` for masks within adjacent blocks of `size`.

    Each block of queries attends to its own block of keys, the previous one, if bidirectional the
    next one, and the leading global tokens; global tokens attend to all keys.
    """
    B, T, N, H = query.shape
    K, G, g = key.shape[2], N // key.shape[2], mask.global_tokens
    if T <= 2 * size + g:
        return dense.attend(query, key, value, mask, scoring)
    count, ahead = -(-T // size), 0 if mask.causal else 1

    def near(x, fill=0):  # [B, T, ...] -> [B, count, g + (2 + ahead) size, ...]
        first = jnp.broadcast_to(x[:, None, :g], (x.shape[0], count, g, *x.shape[2:]))
        x = _pad(cut(x, size, fill), 1, ahead, fill)
        return jnp.concatenate([first, *(x[:, i : i + count] for i in range(2 + ahead))], axis=2)

    index = jnp.arange(T)[None]
    ours, theirs = cut(index, size, -1)[..., :, None], near(index, -1)[..., None, :]
    # A global token is among the keys twice, in front and in its block: mask one of them.
    once = (theirs >= g) | (jnp.arange(theirs.shape[-1]) < g)
    visible = once & (theirs >= 0) & mask.near(ours, theirs)
    if mask.query_segments is not None:
        ours, theirs = cut(mask.query_segments, size), near(mask.key_segments)
        visible = visible & (ours[..., :, None] == theirs[..., None, :])
    bias = None
    if scoring.bias is not None:
        bias = scoring.bias.tile(-size, size, (2 + ahead) * size)
        first = _pad(scoring.bias.tile(0, T, g), 0, count * size - T, 0)
        first = first.reshape(N, count, size, g)
        bias = jnp.broadcast_to(bias[:, None], (N, count, *bias.shape[1:]))
        bias = jnp.concatenate([first, bias], axis=-1).reshape(K, G, *bias.shape[1:3], -1)

    products = jnp.einsum(
        "bcikgh,bcjkh->bkgcij",
        cut(query.reshape(B, T, K, G, H), size),
        near(key),
        preferred_element_type=jnp.float32,
    )
    weights = scoring.weights(scoring.scores(products, H, bias), visible[:, None, None])
    y = jnp.einsum("bkgcij,bcjkh->bcikgh", weights.astype(value.dtype), near(value))
    y = y.reshape(B, count * size, N, -1)[:, :T]
    return y.at[:, :g].set(leading(g, query, key, value, mask, scoring)) if g else y


def leading(
    rows: int, query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring
) -> Array:
    """Full attention of the first `rows` queries to all keys."""
    if mask.query_segments is not None:
        mask = dataclasses.replace(mask, query_segments=mask.query_segments[:, :rows])
    return dense.attend(query[:, :rows], key, value, mask, scoring)


def _pad(x, before, after, fill):
    """Pads axis 1."""
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)


def attend_longformer(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, window: int, global_tokens: int, global_query: Array, global_key: Array, global_value: Array,
) -> Array:
    """Longformer attention [B, T, N, H] under mask.window and mask.global_tokens.

    The first global_tokens of a row use separate projections (Beltagy 2020, section 3.1, "Linear
    Projections for Global Attention"), without rotary positions. In a packed row they belong to the
    first segment, and are visible to it only.

    Args:
      window: number of keys a query attends to backwards, itself included, and likewise forwards.
      global_query: [B, T, N, H]; global_key, global_value: [B, S, K, H].
    """
    mask = dataclasses.replace(mask, window=window, global_tokens=global_tokens)
    if not global_tokens:
        return attend(query, key, value, mask, scoring)
    if query.shape[1] <= global_tokens:
        return dense.attend(global_query, global_key, global_value, mask, scoring)
    y = banded(query, key, value, mask, scoring, window)
    first = leading(global_tokens, global_query, global_key, global_value, mask, scoring)
    return y.at[:, :global_tokens].set(first)


def attend_strided(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, stride: int
) -> Array:
    """Strided attention [B, T, N, H] under mask.stride, at a cost of T^2 / stride.

    A query attends to keys at multiples of `stride` (Child 2019, section 4.2, the second of its two
    heads; alternated with "local" it is the paper's strided pattern). Tokens are grouped by index
    modulo stride, and each group is attended to as a separate sequence.
    """
    return _strided(query, key, value, mask, scoring, stride, None)


def attend_dilated(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, stride: int, window: int,
) -> Array:
    """Dilated sliding window: `attend_strided` limited to the nearest `window` of these keys.

    The query itself included; linear in T (Beltagy 2020, https://arxiv.org/abs/2004.05150,
    section 3.1).
    """
    return _strided(query, key, value, mask, scoring, stride, window)


def _strided(query, key, value, mask, scoring, stride, window):
    T, S = query.shape[1], key.shape[1]
    if not mask.whole or T != S or T <= stride:
        span = window and window * stride
        mask = dataclasses.replace(mask, stride=stride, window=span or mask.window)
        return blockwise.attend(query, key, value, mask, scoring)
    count, segments = -(-T // stride), mask.query_segments
    if segments is None and T % stride:
        segments = jnp.ones((1, T), jnp.int32)
    # [B, T, ...] -> [B stride, count, ...]
    classes = lambda x: cut(x, stride).swapaxes(1, 2).reshape(-1, count, *x.shape[2:])
    if segments is not None:
        segments = classes(jnp.broadcast_to(segments, query.shape[:2]))
    if scoring.bias is not None:
        values = scoring.bias.values
        zero = values.shape[1] // 2
        scoring = dataclasses.replace(scoring, bias=Bias(values[:, zero % stride :: stride]))
    mask = Mask(segments, segments, causal=mask.causal, window=window)
    inner = attend if window else blockwise.attend
    y = inner(*(classes(x) for x in (query, key, value)), mask, scoring)
    y = y.reshape(-1, stride, *y.shape[1:]).swapaxes(1, 2)
    return y.reshape(y.shape[0], count * stride, *y.shape[3:])[:, :T]


def pairs(T: int, S: int, window: int | None) -> int:
    """Number of query-key pairs that attention in blocks of `window` computes."""
    return T * min(S, 2 * (window or S))


def _longformer_pairs(T, S, window, global_tokens):
    return pairs(T, S, window) + (T + S) * global_tokens


VARIANT = Variant(
    attend,
    supports=able("-"),
    flops=lambda T, S, N, H, window=None: 4 * pairs(T, S, window) * N * H,
    memory=lambda T, S, N, H, window=None: pairs(T, S, window) * N,
    source="Child et al. 2019, https://arxiv.org/abs/1904.10509; Brown et al. 2020, "
    "https://arxiv.org/abs/2005.14165",
    reads=("window",),
    reach=lambda window: window,
)
CHUNKED = dataclasses.replace(
    VARIANT,
    attend=attend_chunked,
    reach=lambda window: 2 * window,
    source="Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, its local layers",
)
STRIDED = Variant(
    attend_strided,
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
LONGFORMER = Variant(
    attend_longformer,
    supports=able("causal bidirectional packing grouped bias softcap sinks dropout"),
    flops=lambda T, S, N, H, **reads: 4 * _longformer_pairs(T, S, **reads) * N * H,
    memory=lambda T, S, N, H, **reads: _longformer_pairs(T, S, **reads) * N,
    source="Beltagy et al. 2020, https://arxiv.org/abs/2004.05150",
    reads=("window", "global_tokens"),
    projections=lambda N, K, H, global_tokens, **_: {
        "global_query": Projection((N, H), ("heads", "kv"), bias=0.0),
        "global_key": Projection((K, H), ("kv_heads", "kv"), bias=0.0),
        "global_value": Projection((K, H), ("kv_heads", "kv"), bias=0.0),
    },
)

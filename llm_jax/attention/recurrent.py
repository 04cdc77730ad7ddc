"""Chunkwise recurrence of linear attention: parallel within chunks, recurrent across chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.decay import decays
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import cut
from llm_jax.attention.variant import Weight

CHUNK = 64  # a power of two


def run(
    chunk: Callable[..., tuple[Array, Array]], arrays: tuple[Array, ...], log_decay: Array | None,
    mask: Mask, state: Any, strict: bool = False, largest: int = CHUNK,
) -> tuple[Array, Any]:
    """Runs a causal recurrence in chunks; returns outputs [B, T, N, V] and the final state.

    Args:
      chunk: (state, arrays of a chunk [B, N, c, ...], Decays) -> (output [B, N, c, V], state), for
        chunks of `chunk_size` tokens.
      arrays: [B, T, N, ...]; zeros must leave the state unchanged.
      log_decay: log decay of the state at each token, at most 0: [B, T, N], or [B, T, N, M] per
        channel; None: no decay.
      mask: provides the segments, each contiguous; the state is reset between them.
      state: initial state; a pytree of arrays of any shape.
      strict: a token's output reads the state before its update.
    """
    B, T = arrays[0].shape[:2]
    size = chunk_size(T, largest)
    # [B, T, N, ...] -> [count, B, N, size, ...]
    chunks = lambda x: jnp.moveaxis(cut(x, size), (1, 3), (0, 2))
    if log_decay is not None:
        log_decay = log_decay[..., None] if log_decay.ndim == 3 else log_decay
        log_decay = chunks(log_decay.astype(jnp.float32))
    segments = mask.query_segments
    segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
    segments = jnp.pad(segments, ((0, 0), (0, -T % size)), mode="edge")
    segments = cut(jnp.broadcast_to(segments, (B, segments.shape[1])), size)

    @jax.checkpoint
    def step(carry, inputs):
        state, before = carry
        arrays, log_decay, segments = inputs
        y, state = chunk(state, arrays, decays(log_decay, segments, before, strict))
        return (state, segments[:, -1]), y

    inputs = tuple(chunks(x) for x in arrays), log_decay, segments.swapaxes(0, 1)
    (state, _), y = jax.lax.scan(step, (state, segments[:, 0, 0]), inputs)
    y = jnp.moveaxis(y, (0, 2), (1, 3))
    return y.reshape(B, -1, *y.shape[3:])[:, :T], state


def sum_of_products(
    query: Array, key: Array, value: Array, mask: Mask, log_decay: Array | None = None,
    state: Array | None = None, valid: Array | None = None, strict: bool = False,
) -> tuple[Array, Array]:
    """Linear recurrence [B, T, N, V]: y_t = query_t S_t, S_t = decay_t S_(t-1) + key_t value_t^T.

    query, key [B, T, N, M], value [B, T, N, V], log_decay [B, T, N], or [B, T, N, M] per channel,
    state [B, N, M, V] (None: zeros), all in float32; valid [B, T]: tokens that update the state
    (None: all). strict: y_t = query_t S_(t-1).
    """
    B, _, N, M = query.shape
    if state is None:
        state = jnp.zeros((B, N, M, value.shape[-1]))
    if valid is not None:
        key, log_decay = hold(valid, key), hold(valid, log_decay)

    def chunk(state, arrays, decays):
        q, k, v = arrays
        y = decays.scores(q, k) @ v + (q * decays.arriving) @ state
        added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving, v)
        return y, state * decays.through + added

    return run(chunk, (query, key, value), log_decay, mask, state, strict)


def chunk_size(T: int, largest: int = CHUNK) -> int:
    """Returns the chunk size for a row of T tokens, a power of two."""
    return min(largest, 1 << (T - 1).bit_length())


def hold(valid: Array | None, x: Array | None) -> Array | None:
    """Zeroes x [B, T, N, ...] at invalid tokens, so that they leave the state unchanged."""
    if valid is None or x is None:
        return x
    return jnp.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), x, 0)


def head_norm(N: int, K: int, H: int, value_dim: int, **_: Any) -> dict[str, Weight]:
    """The scale [V] of a per-head output norm, which bounds the otherwise unbounded sums."""
    return {"norm": Weight((value_dim,), ("kv",), jax.nn.initializers.ones)}


def repeat(x: Array, N: int) -> Array:
    """Repeats key heads [B, S, K, H] to the number of query heads [B, S, N, H], in float32."""
    return jnp.repeat(x, N // x.shape[2], axis=2).astype(jnp.float32)

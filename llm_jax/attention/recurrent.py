"""Chunkwise recurrence of linear attention: a state from chunk to chunk, each chunk in parallel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask

CHUNK = 64


class Decays(NamedTuple):
    """How much of the state reaches each token of a chunk [B, N, c], and of each the state."""

    within: Array  # [B, N, c, c], from the later token's row to the earlier one's column
    arriving: Array  # [B, N, c], of the state before the chunk
    leaving: Array  # [B, N, c], of each token in the state after it
    through: Array  # [B, N], of the state before in the state after


def run(
    chunk: Callable[..., tuple[Array, Array]], arrays: tuple[Array, ...], log_decay: Array | None,
    mask: Mask, state: Array,
) -> tuple[Array, Array]:
    """Returns outputs [B, T, N, V] and the last state, of a causal recurrence in chunks.

    Args:
      chunk: (state, arrays of a chunk [B, N, c, ...], Decays) -> (output [B, N, c, V], state).
      arrays: [B, T, N, ...], where zeros must leave the state as it is.
      log_decay: [B, T, N] of the state before each token, at most 0; None: no decay.
      mask: its segments, each in one piece, do not see each other's states.
      state: [B, N, ...] float32 before the first token.
    """
    B, T, N = arrays[0].shape[:3]
    size = min(CHUNK, T)
    count = -(-T // size)

    def chunks(x):  # [B, T, N, ...] -> [count, B, N, size, ...]
        x = jnp.pad(x, [(0, 0), (0, count * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), (1, 3), (0, 2))

    log_decay = jnp.zeros((B, T, N)) if log_decay is None else log_decay.astype(jnp.float32)
    segments = mask.query_segments
    segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
    segments = jnp.pad(segments, ((0, 0), (0, count * size - T)), mode="edge")
    segments = jnp.broadcast_to(segments, (B, count * size)).reshape(B, count, size)

    @jax.checkpoint
    def step(carry, inputs):
        state, before = carry
        arrays, log_decay, segments = inputs
        decays = _decays(log_decay, segments, before)
        y, state = chunk(state, arrays, decays)
        return (state, segments[:, -1]), y

    inputs = tuple(chunks(x) for x in arrays), chunks(log_decay), segments.swapaxes(0, 1)
    (state, _), y = jax.lax.scan(step, (state, segments[:, 0, 0]), inputs)
    y = jnp.moveaxis(y, (0, 2), (1, 3))
    return y.reshape(B, count * size, *y.shape[3:])[:, :T], state


def _decays(log_decay: Array, segments: Array, before: Array) -> Decays:
    """log_decay [B, N, c], segments [B, c], and the segment [B] that the state belongs to."""
    c = log_decay.shape[-1]
    same = (segments[:, :, None] == segments[:, None])[:, None]
    earlier = jnp.tril(jnp.ones((c, c), bool)) & same
    # Not a cumulative sum: what another segment adds would come back as rounding.
    total = jnp.einsum("bnij,bnj->bni", earlier.astype(log_decay.dtype), log_decay)
    within = jnp.where(earlier, total[..., :, None] - total[..., None, :], -jnp.inf)
    last = segments[:, -1:]
    arriving = jnp.where((segments == before[:, None])[:, None], jnp.exp(total), 0)
    leaving = jnp.where((segments == last)[:, None], jnp.exp(total[..., -1:] - total), 0)
    through = jnp.where(last == before[:, None], jnp.exp(total[..., -1]), 0)
    return Decays(jnp.exp(within), arriving, leaving, through)


def sum_of_products(
    query: Array, key: Array, value: Array, mask: Mask, log_decay: Array | None = None,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """Returns y [B, T, N, V] with y_t = query_t S_t, S_t = decay_t S_(t-1) + key_t value_t^T.

    query, key [B, T, N, M], value [B, T, N, V], state [B, N, M, V] (None: zeros), all float32.
    """
    B, _, N, M = query.shape
    if state is None:
        state = jnp.zeros((B, N, M, value.shape[-1]))

    def chunk(state, arrays, decays):
        q, k, v = arrays
        y = jnp.einsum("bnij,bnjv->bniv", jnp.einsum("bnim,bnjm->bnij", q, k) * decays.within, v)
        y += jnp.einsum("bnim,bnmv->bniv", q * decays.arriving[..., None], state)
        added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving[..., None], v)
        return y, state * decays.through[..., None, None] + added

    return run(chunk, (query, key, value), log_decay, mask, state)


def repeat(x: Array, N: int) -> Array:
    """Key heads [B, S, K, H] beside their query heads [B, S, N, H], float32."""
    return jnp.repeat(x, N // x.shape[2], axis=2).astype(jnp.float32)

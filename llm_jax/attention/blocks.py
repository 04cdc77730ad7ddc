"""Attention to selected blocks of keys, and the block means used for selection.

A block that spans several segments represents its last segment only. For later queries of that
segment this is exactly the part of the block that they can attend to.
"""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import BLOCK, cut
from llm_jax.attention.scoring import Scoring

KEYS = 2**16  # keys gathered at a time per head


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring, chosen: Array,
    block: int, start: int | Array = 0,
) -> tuple[Array, Array]:
    """Softmax attention [B, T, N, V] over the visible keys of the chosen blocks.

    Also returns the attention weights [B, J k, N / (J k), C, T / C, M block], for k key heads per
    group.

    Args:
      query: [B, T, N, H], the mask's queries from `start`.
      chosen: [B or 1, J, C, M], indices of blocks of `block` keys, -1: none, for each of C chunks
        of queries and J groups of heads; J is a multiple or divisor of the number of key heads.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    J, C = chosen.shape[1:3]
    k = max(1, K // J)  # key heads per group
    place = chosen[..., None] * block + jnp.arange(block)
    place = place.reshape(*chosen.shape[:3], -1)

    def pick(x):  # [B, S, K, H] -> [B, J, C, M block, k, H]
        x = cut(x, block).reshape(B, -1, block, K // k, k, x.shape[-1])
        group = (jnp.arange(J) * (K // k) // J)[:, None, None]
        x = x[jnp.arange(B)[:, None, None, None], jnp.maximum(chosen, 0), :, group]
        return x.reshape(B, J, C, -1, *x.shape[-2:])

    query = query.reshape(B, C, T // C, J, k, -1, H)
    products = jnp.einsum(
        "bcqjkgh,bjcskh->bjkgcqs", query, pick(key), preferred_element_type=jnp.float32
    )
    grouped = products.reshape(B, J * k, -1, *products.shape[4:])
    ours = mask.places(start, T).reshape(-1, 1, C, T // C, 1)
    theirs = place[..., None, :]
    visible = (theirs >= 0) & (theirs < S) & mask.near(ours, theirs)
    if mask.query_segments is not None:
        ours = at(mask.query_segments, (start + jnp.arange(T))[None]).reshape(-1, 1, C, T // C, 1)
        visible = visible & (ours == at(mask.key_segments, theirs))
    visible = jnp.repeat(jnp.broadcast_to(visible, (B, J, *visible.shape[2:])), k, axis=1)
    weights = scoring.weights(scoring.scores(grouped, H), visible[:, :, None], start)
    own = weights.reshape(products.shape).astype(value.dtype)
    y = jnp.einsum("bjkgcqs,bjcskv->bcqjkgv", own, pick(value))
    return y.reshape(B, T, N, -1), weights


def at(x: Array, index: Array) -> Array:
    """Returns x [B or 1, S] at index [B or 1, ...], with indices clipped to the valid range."""
    rows = max(len(x), len(index))
    x, index = (jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in (x, index))
    flat = jnp.take_along_axis(x, index.reshape(rows, -1), axis=1, mode="clip")
    return flat.reshape(index.shape)


def size(keys: int) -> int:
    """Returns how many queries to process at a time if each gathers so many keys."""
    return max(1, min(BLOCK, KEYS // keys))


def means(x: Array, mask: Mask, block: int) -> Array:
    """Returns block means [B, S / block, K, H] in float32, over each block's last segment.

    x: [B, S, K, H]. The value for an incomplete last block is meaningless.
    """
    x = cut(x.astype(jnp.float32), block)
    if mask.key_segments is None:
        return x.mean(2)
    segment = cut(mask.key_segments, block)
    share = segment == segment[..., -1:]
    share = share / share.sum(-1, keepdims=True)
    return jnp.einsum("bcikh,bci->bckh", x, jnp.broadcast_to(share, x.shape[:3]))


def complete(mask: Mask, start: Array, T: int, S: int, block: int) -> Array:
    """Returns bool [B or 1, T, S / block]: true for blocks without keys after the query."""
    last = jnp.arange(-(-S // block)) * block + block - 1
    seen = last <= mask.places(start, T)[..., None]
    if mask.query_segments is None:
        return seen
    ours = at(mask.query_segments, (start + jnp.arange(T))[None])
    return seen & (ours[..., None] == at(mask.key_segments, last[None])[:, None])


def choose(scores: Array, seen: Array, always: Array, count: int) -> Array:
    """Returns [..., count] ints: the seen blocks with the highest scores [..., C], or -1.

    Blocks marked `always` come first.
    """
    scores = jnp.where(always, jnp.inf, jnp.where(seen, scores, -jnp.inf))
    best, index = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return jnp.where(best > -jnp.inf, index, -1)

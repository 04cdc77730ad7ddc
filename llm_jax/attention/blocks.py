"""Attention to chosen blocks of keys, and the summaries by which blocks are chosen.

A block that several segments share counts as a part of the last of them: of a query's own segment
that is all that the block has, since nothing of another comes in between.
"""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import BLOCK, cut
from llm_jax.attention.scoring import Scoring

KEYS = 2**16  # gathered at a time, of each head


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring, chosen: Array,
    block: int, start: int | Array = 0,
) -> tuple[Array, Array]:
    """Returns [B, T, N, V], softmax over those keys of the chosen blocks that the mask shows.

    And its weights [B, J k, N / (J k), C, T / C, M block] by those keys, k key heads a group.

    Args:
      query: [B, T, N, H], the mask's queries from `start`.
      chosen: [B or 1, J, C, M], blocks of `block` keys, -1: none; each of C pieces of the queries
        and each of J groups of heads has its own, J a multiple or a divisor of the key heads.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    J, C = chosen.shape[1:3]
    k = max(1, K // J)  # key heads of a group
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
    """Returns x [B or 1, S] at index [B or 1, ...], places beyond it as its ends."""
    rows = max(len(x), len(index))
    x, index = (jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in (x, index))
    flat = jnp.take_along_axis(x, index.reshape(rows, -1), axis=1, mode="clip")
    return flat.reshape(index.shape)


def size(keys: int) -> int:
    """Queries at a time, each of which gathers so many keys."""
    return max(1, min(BLOCK, KEYS // keys))


def means(x: Array, mask: Mask, block: int) -> Array:
    """Returns [B, S / block, K, H] float32, of each block the mean of its last segment's tokens.

    x: [B, S, K, H]; a last block that is not full has no meaning.
    """
    x = cut(x.astype(jnp.float32), block)
    if mask.key_segments is None:
        return x.mean(2)
    segment = cut(mask.key_segments, block)
    share = segment == segment[..., -1:]
    share = share / share.sum(-1, keepdims=True)
    return jnp.einsum("bcikh,bci->bckh", x, jnp.broadcast_to(share, x.shape[:3]))


def complete(mask: Mask, start: Array, T: int, S: int, block: int) -> Array:
    """Returns bool [B or 1, T, S / block]: blocks none of whose keys comes after the query."""
    last = jnp.arange(-(-S // block)) * block + block - 1
    seen = last <= mask.places(start, T)[..., None]
    if mask.query_segments is None:
        return seen
    ours = at(mask.query_segments, (start + jnp.arange(T))[None])
    return seen & (ours[..., None] == at(mask.key_segments, last[None])[:, None])


def choose(scores: Array, seen: Array, always: Array, count: int) -> Array:
    """Returns [..., count] ints: the blocks of the highest scores [..., C] that are seen, or -1.

    Those that are `always` chosen come first.
    """
    scores = jnp.where(always, jnp.inf, jnp.where(seen, scores, -jnp.inf))
    best, index = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return jnp.where(best > -jnp.inf, index, -1)

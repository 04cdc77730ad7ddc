"""Queries a block at a time, for kinds that need a whole row of scores but not all rows."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Scoring

BLOCK = 128


def by_rows(
    rows: Callable[[Array, Array], Array], query: Array, size: int = BLOCK
) -> Array:
    """Returns rows(query [B, t, N, H], start) -> [B, t, N, V] for all of query [B, T, N, H].

    So many queries at a time as `size` says. The backward pass computes each block again: memory
    is that of one.
    """
    B, T, N, H = query.shape
    if T <= size:
        return rows(query, jnp.zeros((), jnp.int32))
    count = -(-T // size)
    blocks = jnp.pad(query, [(0, 0), (0, count * size - T), (0, 0), (0, 0)])
    blocks = blocks.reshape(B, count, size, N, H).swapaxes(0, 1)
    one = jax.checkpoint(lambda x: rows(*x), prevent_cse=False)
    y = jax.lax.map(one, (blocks, jnp.arange(count) * size))
    return y.swapaxes(0, 1).reshape(B, count * size, N, -1)[:, :T]


def scores(
    query: Array, key: Array, mask: Mask, scoring: Scoring, start: Array
) -> tuple[Array, Array | None]:
    """Returns scores [B, N, t, S] of queries [B, t, N, H] from `start`, and which are visible."""
    B, t, N, H = query.shape
    S, K = key.shape[1:3]
    products = jnp.einsum(
        "btkgh,bskh->bkgts",
        query.reshape(B, t, K, N // K, H),
        key,
        preferred_element_type=jnp.float32,
    ).reshape(B, N, t, S)
    return of_products(products, H, mask, scoring, start)


def of_products(
    products: Array, H: int, mask: Mask, scoring: Scoring, start: Array
) -> tuple[Array, Array | None]:
    """Returns `scores` of products [B, N, t, S] of heads of size H."""
    t, S = products.shape[2:]
    bias = scoring.bias and scoring.bias.block(mask.query_offset, start, t, 0, S)
    if mask.query_segments is not None and mask.query_segments.shape[1] % BLOCK:
        more = -mask.query_segments.shape[1] % BLOCK
        padded = jnp.pad(mask.query_segments, ((0, 0), (0, more)))
        mask = dataclasses.replace(mask, query_segments=padded)
    return scoring.scores(products, H, bias), mask.tile(start, t, 0, S)


def softmax(
    scores: Array, visible: Array | None, value: Array, scoring: Scoring, start: Array
) -> Array:
    """Returns [B, t, N, V]: the values [B, S, K, V] by the weights of scores [B, N, t, S]."""
    value = jnp.repeat(value, scores.shape[1] // value.shape[2], axis=2)
    visible = None if visible is None else visible[:, :, None]
    weights = scoring.weights(scores[:, :, None], visible, start)[:, :, 0]
    return jnp.einsum("bnts,bsnv->btnv", weights.astype(value.dtype), value)

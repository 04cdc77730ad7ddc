"""Queries a block at a time, for kinds that need a whole row of scores but not all rows."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Scoring

BLOCK = 128


def by_rows(rows: Callable[[Array, Array], Array], query: Array) -> Array:
    """Returns rows(query [B, t, N, H], start) -> [B, t, N, V] for all of query [B, T, N, H].

    The backward pass computes each block again: memory is that of one.
    """
    B, T, N, H = query.shape
    if T <= BLOCK:
        return rows(query, jnp.zeros((), jnp.int32))
    count = -(-T // BLOCK)
    blocks = jnp.pad(query, [(0, 0), (0, count * BLOCK - T), (0, 0), (0, 0)])
    blocks = blocks.reshape(B, count, BLOCK, N, H).swapaxes(0, 1)
    one = jax.checkpoint(lambda x: rows(*x), prevent_cse=False)
    y = jax.lax.map(one, (blocks, jnp.arange(count) * BLOCK))
    return y.swapaxes(0, 1).reshape(B, count * BLOCK, N, -1)[:, :T]


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
    bias = scoring.bias and scoring.bias.block(mask.query_offset, start, t, 0, S)
    if mask.query_segments is not None and mask.query_segments.shape[1] % BLOCK:
        more = -mask.query_segments.shape[1] % BLOCK
        padded = jnp.pad(mask.query_segments, ((0, 0), (0, more)))
        mask = dataclasses.replace(mask, query_segments=padded)
    return scoring.scores(products, H, bias), mask.tile(start, t, 0, S)

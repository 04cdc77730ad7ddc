"""Attention by blocks of queries, for variants that need whole rows of scores."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Scoring

BLOCK = 128


def cut(x: Array, size: int, fill: Any = 0) -> Array:
    """Splits x [B, T, ...] into blocks [B, T / size, size, ...]; the last one is padded."""
    more = [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, more, constant_values=fill)
    return x.reshape(len(x), -1, size, *x.shape[2:])


def by_rows(rows: Callable[[Any, Array], Any], query: Any, size: int = BLOCK) -> Any:
    """Maps rows(query [B, t, N, H], start) -> [B, t, N, V] over blocks of query [B, T, N, H].

    Query and result may be pytrees. Blocks have `size` queries and are recomputed in the backward
    pass, so that memory is that of one block.
    """
    T = jax.tree.leaves(query)[0].shape[1]
    if T <= size:
        return rows(query, jnp.zeros((), jnp.int32))
    one = jax.checkpoint(lambda x: rows(*x), prevent_cse=False)
    queries = jax.tree.map(lambda x: cut(x, size).swapaxes(0, 1), query)
    y = jax.lax.map(one, (queries, jnp.arange(0, T, size)))
    join = lambda y: y.swapaxes(0, 1).reshape(y.shape[1], -1, *y.shape[3:])[:, :T]
    return jax.tree.map(join, y)


def scores(
    query: Array, key: Array, mask: Mask, scoring: Scoring, start: Array
) -> tuple[Array, Array | None]:
    """Returns scores [B, N, t, S] of queries [B, t, N, H] from `start`, and their visibility."""
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
    """Returns `scores` from products [B, N, t, S] of heads of size H."""
    t, S = products.shape[2:]
    bias = scoring.bias and scoring.bias.block(mask.query_offset, start, t, 0, S)
    return scoring.scores(products, H, bias), shown(mask, start, t, S)


def shown(mask: Mask, start: Array, T: int, S: int) -> Array | None:
    """Returns mask.tile for T queries from `start` and all keys; last queries may be padding."""
    if mask.query_segments is not None:
        padded = jnp.pad(mask.query_segments, ((0, 0), (0, T - 1)))
        mask = dataclasses.replace(mask, query_segments=padded)
    return mask.tile(start, T, 0, S)


def softmax(scores: Array, visible: Array | None, scoring: Scoring, start: Array) -> Array:
    """Returns the attention weights for scores [B, N, t, S]."""
    visible = None if visible is None else visible[:, :, None]
    return scoring.weights(scores[:, :, None], visible, start)[:, :, 0]


def weighted(weigh: Callable[[Any, Array], Array], query: Any, value: Array) -> Array:
    """Returns the weighted sums [B, T, N, V] of values [B, S, K, V].

    weigh(query [B, t, N, H], start) returns the weights [B, N, t, S] of t queries from `start`.
    """

    def rows(query, start):
        weights = weigh(query, start)
        v = jnp.repeat(value, weights.shape[1] // value.shape[2], axis=2)
        return jnp.einsum("bnts,bsnv->btnv", weights.astype(v.dtype), v)

    return by_rows(rows, query)


def segment_sums(x: Array, segments: Array | None) -> Array:
    """Returns cumulative sums of x [B, S, ...] that restart with each segment [B, S]."""
    if segments is None:
        return jnp.cumsum(x, axis=1)
    new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    new = new.reshape(*new.shape, *[1] * (x.ndim - 2))
    add = lambda a, b: (jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1])
    return jax.lax.associative_scan(add, (x, new), axis=1)[0]

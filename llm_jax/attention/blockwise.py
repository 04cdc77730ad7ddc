"""Exact blockwise softmax attention in plain JAX, with memory linear in the sequence length."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from llm_jax.attention import dense, platform
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import HIDDEN, PLAIN, Scoring
from llm_jax.attention.variant import Variant, able

# (scores per tile, maximum side of a tile); on a CPU, a tile fits in its cache.
LARGEST = {"cpu": (2**19, 256)}
ELSEWHERE = (2**30, 512)
SMALLEST = 64


def attend(query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN) -> Array:
    """Computes `dense.attend` [B, T, N, H] by tiles of queries and keys.

    The forward pass keeps a running maximum and sum of the softmax (online softmax; Milakov 2018;
    Rabe 2021); the backward pass recomputes the scores from the log-sum-exp (FlashAttention;
    Dao 2022, https://arxiv.org/abs/2205.14135, algorithms 2 and 4; Dao 2023). Fully masked tiles
    are skipped. Prefix masks and rows with different query offsets fall back to `dense.attend`.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    if not mask.aligned or T == 1:
        return dense.attend(query, key, value, mask, scoring)
    size = _size(B * N)
    t, s = min(size, T), min(size, S)
    rows, columns = -(-T // t) * t, -(-S // s) * s
    query = _pad(query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4), 3, rows)
    key, value = (_pad(x.swapaxes(1, 2), 2, columns) for x in (key, value))
    if mask.query_segments is None and columns > S:
        ones = jnp.ones((1, max(T, S)), jnp.int32)
        mask = dataclasses.replace(mask, query_segments=ones[:, :T], key_segments=ones[:, :S])
    if mask.query_segments is not None:
        # Keys that pad the last block get a segment id that no query has.
        mask = dataclasses.replace(
            mask,
            query_segments=_pad(mask.query_segments, 1, rows),
            key_segments=_pad(mask.key_segments, 1, columns, fill=-1),
        )
    smooth = query, key, value, scoring.bias, scoring.sinks
    fixed = mask, dataclasses.replace(scoring, bias=None, sinks=None)
    y = _attend((t, s, T, S), smooth, fixed)
    return y[..., :T, :].transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def _size(heads: int) -> int:
    """Returns the tile side, a power of two."""
    scores, most = LARGEST.get(platform.name(), ELSEWHERE)
    side = 1 << (math.isqrt(scores // heads).bit_length() - 1)
    return min(max(side, SMALLEST), most)


def _tile(smooth, fixed, i, j, sizes):
    """Returns scores [B, K, G, t, s] of the i-th block of queries and the j-th block of keys."""
    (query, key, bias), (mask, scoring), (t, s, *_) = smooth, fixed, sizes
    products = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        behind = 0 if mask.query_offset is None else mask.query_offset
        bias = bias.tile(j * s - i * t - behind, t, s).reshape(products.shape[1:])
    scores = scoring.scores(products, query.shape[-1], bias)
    visible = mask.tile(i * t, t, j * s, s)
    return scores if visible is None else jnp.where(visible[:, :, None], scores, HIDDEN)


def _blocks(mask, i, sizes):
    """Returns the first and last visible key block of the i-th block of queries."""
    t, s, T, S = sizes
    start, stop = mask.span((i * t, (i + 1) * t), T, S)
    return start // s, (stop + s - 1) // s


def _forward(sizes, smooth, fixed):
    """Returns the output [B, K, G, rows, V] and the log-sum-exp of each query [B, K, G, rows]."""
    query, key, value, bias, sinks = smooth
    (mask, scoring), (t, s, *_) = fixed, sizes
    count = query.shape[3] // t

    def row(i):
        q = lax.dynamic_slice_in_dim(query, i * t, t, axis=3)

        def add(j, carry):
            most, total, y = carry
            k, v = (lax.dynamic_slice_in_dim(x, j * s, s, axis=2) for x in (key, value))
            scores = _tile((q, k, bias), fixed, i, j, sizes)
            new = jnp.maximum(most, scores.max(-1))
            weights = jnp.exp(scores - new[..., None])
            shrink = jnp.exp(most - new)
            total = total * shrink + weights.sum(-1)
            weights = scoring.drop(weights, i * (key.shape[2] // s) + j).astype(v.dtype)
            part = jnp.einsum("bkgts,bksv->bkgtv", weights, v, preferred_element_type=jnp.float32)
            return new, total, y * shrink[..., None] + part

        shape = q.shape[:-1]
        most, total = jnp.full(shape, HIDDEN), jnp.zeros(shape)
        if sinks is not None:
            most = jnp.broadcast_to(sinks.reshape(*shape[1:3], 1).astype(jnp.float32), shape)
            total = jnp.ones(shape)
        carry = most, total, jnp.zeros((*shape, value.shape[-1]))
        most, total, y = lax.fori_loop(*_blocks(mask, i, sizes), add, carry)
        return (y / total[..., None]).astype(value.dtype), most + jnp.log(total)

    y, logs = lax.map(row, jnp.arange(count))  # [count, B, K, G, t, ...]
    join = lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], count * t, *x.shape[5:])
    return join(y), join(logs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, smooth, fixed):
    return _forward(sizes, smooth, fixed)[0]


def _save(sizes, smooth, fixed):
    y, logs = _forward(sizes, smooth, fixed)
    return y, (smooth, fixed, y, logs)


def _backward(sizes, saved, dy):
    smooth, fixed, y, logs = saved
    query, key, value, bias, sinks = smooth
    (mask, scoring), (t, s, *_) = fixed, sizes
    along = jnp.sum(dy.astype(jnp.float32) * y, axis=-1)  # rowsum(dO O), FlashAttention-2, eq. 4
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.float32))

    def row(grads, i):
        q, d, a, z = (lax.dynamic_slice_in_dim(x, i * t, t, 3) for x in (query, dy, along, logs))

        def add(j, carry):
            dq, dk, dv, db = carry
            k, v = (lax.dynamic_slice_in_dim(x, j * s, s, axis=2) for x in (key, value))
            score = lambda *x: _tile(x, fixed, i, j, sizes)
            scores, pull = jax.vjp(score, q, k, bias)
            weights = jnp.exp(scores - z[..., None])
            drop = lambda x: scoring.drop(x, i * (key.shape[2] // s) + j)
            dropped = drop(weights).astype(d.dtype)
            dw = jnp.einsum("bkgtv,bksv->bkgts", d, v, preferred_element_type=jnp.float32)
            mine = pull(weights * (drop(dw) - a[..., None]))
            values = jnp.einsum("bkgts,bkgtv->bksv", dropped, d, preferred_element_type=jnp.float32)
            more = lambda x, y: lax.dynamic_update_slice_in_dim(
                x, lax.dynamic_slice_in_dim(x, j * s, s, axis=2) + y, j * s, axis=2
            )
            return (
                dq + mine[0],
                more(dk, mine[1]),
                more(dv, values),
                jax.tree.map(jnp.add, db, mine[2]),
            )

        dq, *grads = lax.fori_loop(*_blocks(mask, i, sizes), add, (zeros(q), *grads))
        return grads, dq.astype(q.dtype)

    grads, dq = lax.scan(row, zeros([key, value, bias]), jnp.arange(query.shape[3] // t))
    dk, dv, db = grads
    dq = jnp.moveaxis(dq, 0, 3).reshape(query.shape)
    ds = None
    if sinks is not None:
        share = jnp.exp(sinks.reshape(*logs.shape[1:3], 1) - logs)
        ds = -jnp.sum(share * along, axis=(0, 3)).reshape(sinks.shape).astype(sinks.dtype)
    return (dq, dk.astype(key.dtype), dv.astype(value.dtype), db, ds), None


_attend.defvjp(_save, _backward)


def _pad(x, axis, length, fill=0):
    more = [(0, 0)] * x.ndim
    more[axis] = 0, length - x.shape[axis]
    return jnp.pad(x, more, constant_values=fill)


VARIANT = Variant(
    attend,
    supports=able("-"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Dao et al. 2022, https://arxiv.org/abs/2205.14135",
)

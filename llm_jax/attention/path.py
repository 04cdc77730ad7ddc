"""PaTH attention: between a query and a key stand the tokens' Householder-like transforms."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.delta import inverse
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows, of_products, softmax
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able

CHUNK = 32


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, direction: Array, rate: Array,
) -> Array:
    """Returns [B, T, N, H]: softmax(scale q_t (I - b_t w_t w_t^T) … (I - b_(s+1) w_(s+1) …) k_s) v.

    w are directions of length 1, b = 2 sigmoid(rate). Yang 2025, https://arxiv.org/abs/2505.16381,
    which has no other positions. In chunks: a block of queries meets the keys' chunks from the
    last to the first, and a chunk's transforms are multiplied into it once it has its scores.

    Args:
      direction: [B, S, K, H], rate: [B, S, K]; of the keys' tokens.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    c = min(CHUNK, S)

    def chunks(x):  # [B, S, K, ...] -> [S / c, B, K, 1, c, ...], a 1 for the heads of a group
        x = jnp.pad(x, [(0, 0), (0, -S % c)] + [(0, 0)] * (x.ndim - 2)).astype(jnp.float32)
        return jnp.moveaxis(x.reshape(B, -1, c, *x.shape[2:]), (1, 3), (0, 2))[:, :, :, None]

    k, w, b = chunks(key), chunks(direction), 2 * jax.nn.sigmoid(chunks(rate))
    w *= jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)
    w_t = w.swapaxes(-1, -2)
    # Row i: what token i takes from a vector that the tokens before it have changed (delta.py).
    solved = inverse(jnp.tril(b[..., None] * (w @ w_t), -1)) * b[..., None, :]
    of_keys, of_queries = solved @ jnp.tril(w @ k.swapaxes(-1, -2), -1), solved @ w
    first = jnp.arange(len(k)) * c

    def rows(query, start):
        at = mask.places(start, query.shape[1])[:, None, None, :, None]
        q = query.reshape(*query.shape[:2], K, N // K, H).transpose(0, 2, 3, 1, 4)

        def step(q, chunk):
            k, w_t, of_keys, of_queries, first = chunk
            # Of later tokens than the query a query knows nothing.
            met = jnp.where(first + jnp.arange(c) <= at, q @ w_t, 0)
            return q - met @ of_queries, q @ k.swapaxes(-1, -2) - met @ of_keys

        inputs = k, w_t, of_keys, of_queries, first
        _, z = jax.lax.scan(step, q.astype(jnp.float32), inputs, reverse=True)
        z = jnp.moveaxis(z, 0, -2).reshape(B, N, query.shape[1], -1)[..., :S]
        z, visible = of_products(z, H, mask, scoring, start)
        return softmax(z, visible, value, scoring, start)

    return by_rows(rows, query)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped bias softcap sinks dropout weights"),
    flops=lambda T, S, N, H: T * S * N * (8 * H + 2 * min(S, CHUNK)),
    memory=lambda T, S, N, H: (T + 3 * S) * N * H,
    source="Yang et al. 2025, https://arxiv.org/abs/2505.16381",
    projections=lambda N, K, H: {
        "direction": Projection((K, H), ("kv_heads", "kv"), of_keys=True),
        "rate": Projection((K,), ("kv_heads",), bias=0.0, of_keys=True),
    },
)

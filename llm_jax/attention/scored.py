"""Weights of whole rows of scores: sigmoid, talking heads, stick-breaking, forgetting, PaTH."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.delta import inverse
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import cut, of_products, scores, segment_sums, softmax, weighted
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able

CHUNK = 32  # tokens whose transforms PaTH multiplies at once


def attend_sigmoid(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, max_length: int
) -> Array:
    """Returns [B, T, N, H]: sigmoid(scores - log max_length) value, without normalisation.

    Ramapuram 2024, https://arxiv.org/abs/2409.04431, section 3: the bias of minus the logarithm
    of the length keeps the weights' sum near that of a softmax at the start.
    """

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        weights = jax.nn.sigmoid(z - math.log(max_length))
        weights = weights if visible is None else jnp.where(visible, weights, 0)
        return scoring.drop(weights, start)

    return weighted(weigh, query, value)


def attend_talking_heads(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, mix_scores: Array, mix_weights: Array,
) -> Array:
    """Returns [B, T, N, H]: (softmax(scores P) W) value, P and W [N, N] over the heads.

    Section 4 of Shazeer 2020, https://arxiv.org/abs/2003.02436, as many heads within as without:
    heads mix scores before the softmax and weights after it.
    """

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        z = jnp.einsum("bnts,nm->bmts", z, mix_scores)
        return jnp.einsum("bnts,nm->bmts", softmax(z, visible, scoring, start), mix_weights)

    return weighted(weigh, query, value)


def _identity(key, shape, dtype=jnp.float32):
    """Near the heads as they are, so that a model starts as one with ordinary attention."""
    return jnp.eye(*shape, dtype=dtype) + jax.random.normal(key, shape, dtype) * 0.02


def attend_stick_breaking(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN
) -> Array:
    """Returns [B, T, N, H]: sum over s < t of b_ts v_s, times 1 - b_tj of all j in between.

    b = sigmoid(scores): from the latest key back, each takes its share of what is left. A token
    does not see itself, and the first has an output of zeros. Tan 2025,
    https://arxiv.org/abs/2410.17980, which has no other positions, in logarithms.
    """

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        at = mask.places(start, query.shape[1])[:, None, :, None]
        visible = visible & (jnp.arange(key.shape[1]) < at)
        left = jnp.where(visible, jax.nn.log_sigmoid(-z), 0)
        # Of the keys behind each: a shift, so that other segments add no rounding.
        left = jnp.pad(left[..., 1:], ((0, 0),) * 3 + ((0, 1),))
        left = jax.lax.associative_scan(jnp.add, left, reverse=True, axis=3)
        taken = jax.nn.log_sigmoid(z) + left
        return scoring.drop(jnp.where(visible, jnp.exp(taken), 0), start)

    return weighted(weigh, query, value)


def attend_forgetting(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, forget: Array
) -> Array:
    """Returns [B, T, N, H]: softmax(scale q_t k_s + log f_(s+1) + … + log f_t) v.

    f = sigmoid(forget). Forgetting attention (FoX; Lin 2025, https://arxiv.org/abs/2503.02130),
    which has no other positions. With qk_norm and output_gate the layer is the paper's "pro" but
    for the norm of its output and its shift of keys and values.

    Args:
      forget: [B, S, N], of the keys' tokens.
    """
    kept = segment_sums(jax.nn.log_sigmoid(forget.astype(jnp.float32)), mask.key_segments)

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        at = mask.places(start, query.shape[1])[..., None]
        ours = jnp.take_along_axis(kept, at, axis=1, mode="clip")
        z += ours.swapaxes(1, 2)[..., None] - kept.swapaxes(1, 2)[:, :, None]
        return softmax(z, visible, scoring, start)

    return weighted(weigh, query, value)


def attend_path(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, direction: Array, rate: Array,
) -> Array:
    """Returns [B, T, N, H]: softmax(scale q_t (I - b_t w_t w_t^T) … (I - b_(s+1) w_(s+1) …) k_s) v.

    PaTH (Yang 2025, https://arxiv.org/abs/2505.16381), which has no other positions: between query
    and key stand the tokens' Householder-like transforms, of directions w of length 1, with
    b = 2 sigmoid(rate). In chunks: a block of queries meets the keys' chunks from the last to the
    first, and a chunk's transforms are multiplied into it once it has its scores.

    Args:
      direction: [B, S, K, H], rate: [B, S, K]; of the keys' tokens.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    c = min(CHUNK, S)

    def chunks(x):  # [B, S, K, ...] -> [S / c, B, K, 1, c, ...], a 1 for the heads of a group
        return jnp.moveaxis(cut(x.astype(jnp.float32), c), (1, 3), (0, 2))[:, :, :, None]

    k, w, b = chunks(key), chunks(direction), 2 * jax.nn.sigmoid(chunks(rate))
    w *= jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)
    w_t = w.swapaxes(-1, -2)
    # Row i: what token i takes from a vector that the tokens before it have changed (delta.py).
    solved = inverse(jnp.tril(b[..., None] * (w @ w_t), -1)) * b[..., None, :]
    of_keys, of_queries = solved @ jnp.tril(w @ k.swapaxes(-1, -2), -1), solved @ w
    first = jnp.arange(len(k)) * c

    def weigh(query, start):
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
        return softmax(z, visible, scoring, start)

    return weighted(weigh, query, value)


SIGMOID = Variant(
    attend_sigmoid,
    supports=able("- sinks"),
    flops=lambda T, S, N, H, max_length: 4 * T * S * N * H,
    memory=lambda T, S, N, H, max_length: T * N,
    source="Ramapuram et al. 2024, https://arxiv.org/abs/2409.04431",
    reads=("max_length",),
)
TALKING_HEADS = Variant(
    attend_talking_heads,
    supports=able("-"),
    flops=lambda T, S, N, H: 4 * T * S * N * (H + N),
    memory=lambda T, S, N, H: T * N,
    source="Shazeer et al. 2020, https://arxiv.org/abs/2003.02436",
    weights=lambda N, K, H: dict.fromkeys(
        ("mix_scores", "mix_weights"), Weight((N, N), ("heads", None), _identity)
    ),
)
STICK_BREAKING = Variant(
    attend_stick_breaking,
    supports=able("causal packing cache grouped bias softcap dropout weights"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Tan et al. 2025, https://arxiv.org/abs/2410.17980",
)
FORGETTING = Variant(
    attend_forgetting,
    supports=able("causal packing cache grouped bias softcap sinks dropout weights"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Lin et al. 2025, https://arxiv.org/abs/2503.02130",
    projections=lambda N, K, H: {"forget": Projection((N,), ("heads",), bias=0.0, of_keys=True)},
)
PATH = Variant(
    attend_path,
    supports=able("causal packing cache grouped bias softcap sinks dropout weights"),
    flops=lambda T, S, N, H: T * S * N * (8 * H + 2 * min(S, CHUNK)),
    memory=lambda T, S, N, H: (T + 3 * S) * N * H,
    source="Yang et al. 2025, https://arxiv.org/abs/2505.16381",
    projections=lambda N, K, H: {
        "direction": Projection((K, H), ("kv_heads", "kv"), of_keys=True),
        "rate": Projection((K,), ("kv_heads",), bias=0.0, of_keys=True),
    },
)

"""Modified attention weights: sigmoid, talking heads, stick-breaking, forgetting (FoX), PaTH."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.delta import inverse
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import cut, of_products, scores, segment_sums, softmax, weighted
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able

CHUNK = 32  # tokens per chunk of PaTH


def attend_sigmoid(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, max_length: int
) -> Array:
    """Sigmoid attention [B, T, N, H]: sigmoid(scores - log max_length) value, not normalised.

    Ramapuram 2024, https://arxiv.org/abs/2409.04431, section 3: the bias -log(length) keeps the
    sum of the weights close to that of a softmax at initialisation.
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
    """Talking-heads attention [B, T, N, H]: (softmax(scores P) W) value, P and W [N, N] over heads.

    Section 4 of Shazeer 2020, https://arxiv.org/abs/2003.02436, with the same number of heads
    everywhere: heads are mixed before and after the softmax.
    """

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        z = jnp.einsum("bnts,nm->bmts", z, mix_scores)
        return jnp.einsum("bnts,nm->bmts", softmax(z, visible, scoring, start), mix_weights)

    return weighted(weigh, query, value)


def _identity(key, shape, dtype=jnp.float32):
    """Initialises near the identity, so that a model starts close to ordinary attention."""
    return jnp.eye(*shape, dtype=dtype) + jax.random.normal(key, shape, dtype) * 0.02


def attend_stick_breaking(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN
) -> Array:
    """Stick-breaking attention: sum over s < t of b_ts prod_{s < j < t} (1 - b_tj) v_s.

    b = sigmoid(scores): from the latest key back, each takes its fraction of the remaining weight.
    A token does not attend to itself, and the first output is 0. Computed in log space, without
    other positions (Tan 2025, https://arxiv.org/abs/2410.17980).
    """

    def weigh(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        at = mask.places(start, query.shape[1])[:, None, :, None]
        visible = visible & (jnp.arange(key.shape[1]) < at)
        left = jnp.where(visible, jax.nn.log_sigmoid(-z), 0)
        # Shift to exclude the key itself; subtracting would add rounding from other segments.
        left = jnp.pad(left[..., 1:], ((0, 0),) * 3 + ((0, 1),))
        left = jax.lax.associative_scan(jnp.add, left, reverse=True, axis=3)
        taken = jax.nn.log_sigmoid(z) + left
        return scoring.drop(jnp.where(visible, jnp.exp(taken), 0), start)

    return weighted(weigh, query, value)


def attend_forgetting(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, forget: Array
) -> Array:
    """Forgetting attention [B, T, N, H]: softmax(scale q_t k_s + log f_(s+1) + … + log f_t) v.

    f = sigmoid(forget). Forgetting Transformer (FoX; Lin 2025, https://arxiv.org/abs/2503.02130),
    without other positions. With qk_norm and output_gate the layer is the paper's "Pro" block,
    without its output norm and its shift of keys and values.

    Args:
      forget: [B, S, N], for the tokens of the keys.
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
    """PaTH attention: softmax(scale q_t (I - b_t w_t w_t^T) … (I - b_(s+1) w_(s+1) …) k_s) v.

    Yang 2025, https://arxiv.org/abs/2505.16381, without other positions: products of Householder-
    like transforms between query and key, with unit vectors w and b = 2 sigmoid(rate). Chunkwise:
    a block of queries processes chunks of keys from last to first, and multiplies a chunk's
    transforms into the queries after computing its scores.

    Args:
      direction: [B, S, K, H], rate: [B, S, K]; for the tokens of the keys.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    c = min(CHUNK, S)

    def chunks(x):  # [B, S, K, ...] -> [S / c, B, K, 1, c, ...], a 1 for the heads of a group
        return jnp.moveaxis(cut(x.astype(jnp.float32), c), (1, 3), (0, 2))[:, :, :, None]

    k, w, b = chunks(key), chunks(direction), 2 * jax.nn.sigmoid(chunks(rate))
    w *= jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)
    w_t = w.swapaxes(-1, -2)
    # Row i: the component that token i removes after the transforms of earlier tokens (delta.py).
    solved = inverse(jnp.tril(b[..., None] * (w @ w_t), -1)) * b[..., None, :]
    of_keys, of_queries = solved @ jnp.tril(w @ k.swapaxes(-1, -2), -1), solved @ w
    first = jnp.arange(len(k)) * c

    def weigh(query, start):
        at = mask.places(start, query.shape[1])[:, None, None, :, None]
        q = query.reshape(*query.shape[:2], K, N // K, H).transpose(0, 2, 3, 1, 4)

        def step(q, chunk):
            k, w_t, of_keys, of_queries, first = chunk
            # Transforms of tokens after the query do not apply.
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

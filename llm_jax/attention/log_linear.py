"""Log-linear attention: one recurrent state for each of log2(T) spans of the past."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.recurrent import repeat
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, max_length: int, decay: Array, levels: Array, level_scale: Array, norm: Array,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Log-linear attention: RMSNorm(scale q_t sum_l w_tl S_tl), w = softplus(level_scale levels).

    The states S_l are those of `gated_linear` over the spans of a Fenwick tree: the token itself,
    and 2^(l - 1) previous tokens for each bit set in its index in the row (Guo 2025,
    https://arxiv.org/abs/2506.04761, sections 3.1 and 3.2). The spans of a packed document depend
    on its offset in the row.

    Args:
      max_length: maximum length of a row.
      decay: [B, T, N].
      levels: [B, T, N, L], L = 1 + log2(max_length), rounded up.
      level_scale: [N, L].
      norm: [V], scale of the per-head RMSNorm.
      state: [B, N, L, H, V]: initial S_1 to S_(L-1), and the number of tokens read; the final state
        is returned too. With a state, tokens are processed one at a time.
    """
    B, T, N, H = query.shape
    query = query.astype(jnp.float32) * scoring.factor(H)
    log_decay = recurrent.hold(valid, jax.nn.log_sigmoid(decay.astype(jnp.float32)) / 16)
    weights = jax.nn.softplus(level_scale * levels.astype(jnp.float32))
    if state is None:
        size = recurrent.chunk_size(T)
        states = jnp.zeros((B, N, _spans(max_length) - size.bit_length() + 1, H, value.shape[-1]))
        before, valid = (states, jnp.zeros(B, jnp.int32)), jnp.ones((B, T), bool)
    else:
        size, before = 1, (state[:, :, :-1], state[:, 0, -1, 0, 0].astype(jnp.int32))
    arrays = query, repeat(key, N), repeat(value, N), weights
    arrays += (jnp.broadcast_to(valid[..., None], (B, T, N)),)
    y, (states, count) = recurrent.run(_chunk, arrays, log_decay, mask, before, largest=size)
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    if state is None:
        return y
    count = jnp.broadcast_to(count[:, None, None, None, None], state[:, :, :1].shape)
    return y, jnp.concatenate([states, count.astype(jnp.float32)], axis=2)


def _chunk(state, arrays, decays):
    """states [B, N, J, H, V] of spans of 1, 2, 4 … chunks of c tokens; count [B] of chunks."""
    (states, count), (q, k, v, weights, valid) = state, arrays
    (c, J), place = (q.shape[2], states.shape[2]), jnp.arange(q.shape[2])
    inside = c.bit_length()  # levels of spans within a chunk
    apart = place[:, None] ^ place
    level = sum((apart >= 1 << i for i in range(inside - 1)), jnp.zeros_like(apart))
    own = jnp.einsum("bnil,ijl->bnij", weights[..., :inside], jax.nn.one_hot(level, inside))
    y = (decays.scores(q, k) * own) @ v
    of_level = (q * decays.arriving)[..., None, :] * weights[..., inside : inside + J, None]
    y += jnp.einsum("bnijh,bnjhv->bniv", of_level, states)
    # A binary increment: the spans of the trailing ones merge into one.
    bits = (count[:, None] >> jnp.arange(J)) & 1
    lowest = jnp.cumprod(jnp.pad(bits, ((0, 0), (1, 0)), constant_values=1), axis=1)[:, :J]
    ends, fills = ((lowest & x)[:, None, :, None, None] for x in (bits, 1 - bits))
    kept = states * decays.through[:, :, None]
    added = jnp.einsum("bnih,bniv->bnhv", k * decays.leaving, v)[:, :, None]
    merged = added + jnp.sum(kept * ends, axis=2, keepdims=True)
    read = valid[:, 0, 0]
    states = jnp.where(read[:, None, None, None, None], kept * (1 - ends) + fills * merged, states)
    return y, (states, count + read)


def _spans(max_length):
    """The number of span lengths 1, 2, 4 … before a token."""
    return (max_length - 1).bit_length()


def _flops(T, S, N, H, max_length, value_dim):
    size = recurrent.chunk_size(T)
    read = 2 + _spans(max_length) - size.bit_length()
    return T * N * (2 * H * value_dim * read + 2 * size * (H + value_dim))


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=_flops,
    memory=lambda T, S, N, H, max_length, value_dim: T * N * (H + value_dim + _spans(max_length)),
    source="Guo et al. 2025, https://arxiv.org/abs/2506.04761",
    reads=("max_length", "value_dim"),
    weights=lambda N, K, H, **reads: recurrent.head_norm(N, K, H, **reads) | {
        "level_scale": Weight(
            (N, 1 + _spans(reads["max_length"])), ("heads", "kv"), jax.nn.initializers.ones
        )
    },
    projections=lambda N, K, H, max_length, value_dim: {
        "decay": Projection((N,), ("heads",), bias=3.0),
        "levels": Projection((N, 1 + _spans(max_length)), ("heads", "kv")),
    },
    state=lambda N, K, H, max_length, value_dim: (N, 1 + _spans(max_length), H, value_dim),
    gate=jax.nn.silu,
)

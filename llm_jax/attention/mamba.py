"""Mamba-2 and Mamba-3: state space models with one decay per head, as linear attention (SSD)."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.recurrent import CHUNK, repeat, sum_of_products
from llm_jax.attention.rows import segment_sums
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend_mamba2(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, step: Array, z: Array, log_speed: Array, skip: Array, norm: Array,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Mamba-2 [B, T, N, V]: RMSNorm((q_t S_t + skip v_t) silu(z_t)), norm over a group of heads,

      S_t = exp(-speed d_t) S_(t-1) + d_t k_t v_t^T,  d = softplus(step).

    Dao 2024, https://arxiv.org/abs/2405.21060, section 7.1: the query is its C, the key B, the
    value x, with num_key_heads queries and keys, one per group of heads. With short_conv=4 and
    short_conv_bias, this and the layer's projections are the paper's block, without its limits of
    d. Scoring is not used: there is no scale.

    Args:
      step: [B, T, N]; the bias of its projection is dt_bias.
      z: [B, T, N, V].
      log_speed: [N], A_log.
      skip: [N], D.
      norm: [N, V], scale of the norm.
      state: [B, N, H, V], initial state; the final state is returned with the output.
    """
    N = z.shape[2]
    v, size = repeat(value, N), jax.nn.softplus(step.astype(jnp.float32))
    key = repeat(key, N) * size[..., None]
    arrays = repeat(query, N), key, v, mask, -jnp.exp(log_speed) * size
    y, after = sum_of_products(*arrays, state, valid)
    y = (y + skip[:, None] * v) * jax.nn.silu(z.astype(jnp.float32))
    groups = y.reshape(*query.shape[:3], -1)
    y = (rms_norm(groups, None, EPSILON).reshape(y.shape) * norm).astype(value.dtype)
    return y if state is None else (y, after)


def _speeds(key, shape, dtype=jnp.float32):
    """Initialises log speeds, with speeds uniform in [1, 16], as in the paper's code."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))


def attend_mamba3(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, step: Array, speed: Array, trapezoid: Array, angles: Array, z: Array, skip: Array,
    scale_query: Array, scale_key: Array, bias_query: Array, bias_key: Array,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Mamba-3 [B, T, N, V]: (q_t S_t + skip v_t) silu(z_t), with d = softplus(step) and

      S_t = a_t (S_(t-1) + (1 - l_t) d_t k_(t-1) v_(t-1)^T) + l_t d_t k_t v_t^T,
      a = exp(-d softplus(speed)),  l = sigmoid(trapezoid).

    The rank-1 (SISO) model of Lahoti 2026, https://arxiv.org/abs/2603.15569, sections 3.1, 3.2 and
    3.4: its C, B and x are query, key and value. Queries and keys are normalised, get a bias, and
    half of their channels are rotated by the cumulative sum of pi d tanh(angles), in pairs
    (i, i + R). Scoring is not used: there is no scale.

    Args:
      step, speed, trapezoid: [B, T, N].
      angles: [B, T, R], R = H // 4.
      z: [B, T, N, V].
      skip: [N], D.
      scale_query, scale_key: [H], scales of the norms; bias_query, bias_key: [N, H].
      state: [B, N, H + 1, V + 2], initial state, see `_unpack`; the final state is returned too.
    """
    (B, T, N, V), H = z.shape, key.shape[-1]
    full = lambda x: x.astype(jnp.float32)
    size = recurrent.hold(valid, jax.nn.softplus(full(step)))
    log_decay = -jnp.maximum(jax.nn.softplus(full(speed)), 1e-4) * size
    share = jax.nn.sigmoid(full(trapezoid))
    before = jnp.zeros((B, N, H + 1, V + 2)) if state is None else state
    states, k_before, v_before, angle = _unpack(before)
    turns = jnp.pi * size[..., None] * jnp.tanh(full(angles))[:, :, None]
    turns = segment_sums(turns.at[:, 0].add(angle), mask.query_segments)
    q = _turn(repeat(rms_norm(full(query), scale_query, EPSILON), N) + bias_query, turns)
    k = _turn(repeat(rms_norm(full(key), scale_key, EPSILON), N) + bias_key, turns)
    v = repeat(value, N)
    read = jnp.ones((B, T, N), bool) if valid is None else jnp.repeat(valid[..., None], N, axis=2)
    arrays = q, k, v, share * size, (1 - share) * size, read
    start = states, k_before, v_before
    y, (states, k_last, v_last) = recurrent.run(_chunk, arrays, log_decay, mask, start)
    y = ((y + skip[:, None] * v) * jax.nn.silu(full(z))).astype(value.dtype)
    return y if state is None else (y, _pack(states, k_last, v_last, turns[:, -1]))


def _chunk(state, arrays, decays):
    """state: S, and the key and value of the last token, which the next token's update reuses."""
    (S, k_before, v_before), (q, k, v, here, again, read) = state, arrays
    S = S + again[:, :, :1, None] * k_before[..., None] * v_before[:, :, None]
    both = here + jnp.pad(again[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    weights = jnp.where(jnp.eye(k.shape[2], dtype=bool), here[:, :, None], both[:, :, None])
    y = (decays.scores(q, k) * weights) @ v + (q * decays.arriving) @ S
    added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving * both[..., None], v)
    count = read.sum(-1)[..., None]

    def last(x, before):
        at = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[..., None], axis=2)[:, :, 0]
        return jnp.where(count > 0, at, before)

    return y, (S * decays.through + added, last(k, k_before), last(v, v_before))


def _turn(x, angle):
    """Rotates channels (i, i + R) of x [B, T, N, H] by angle i of [B, T, N, R]."""
    R, cos, sin = angle.shape[-1], jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :R], x[..., R : 2 * R]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, x[..., 2 * R :]], axis=-1)


def _pack(S, key, value, angle):
    """[[S, key, angle], [value, 0, 0]], [B, N, H + 1, V + 2]."""
    angle = jnp.pad(angle, ((0, 0), (0, 0), (0, key.shape[-1] - angle.shape[-1])))
    top = jnp.concatenate([S, key[..., None], angle[..., None]], axis=-1)
    return jnp.concatenate([top, jnp.pad(value, ((0, 0), (0, 0), (0, 2)))[:, :, None]], axis=2)


def _unpack(state):
    R = (state.shape[2] - 1) // 4
    return state[:, :, :-1, :-2], state[:, :, :-1, -2], state[:, :, -1, :-2], state[:, :, :R, -1]


def _flops(T, S, N, H, value_dim, num_key_heads):
    return T * N * (4 * H * value_dim + 2 * min(T, CHUNK) * (H + value_dim))


_ones = jax.nn.initializers.ones
MAMBA2 = Variant(
    attend_mamba2,
    supports=able("causal packing cache grouped"),
    flops=_flops,
    memory=lambda T, S, N, H, value_dim, num_key_heads: T * N * (H + value_dim),
    source="Dao and Gu 2024, https://arxiv.org/abs/2405.21060",
    reads=("value_dim", "num_key_heads"),
    weights=lambda N, K, H, value_dim, num_key_heads: {
        "log_speed": Weight((N,), ("heads",), _speeds),
        "skip": Weight((N,), ("heads",), _ones),
        "norm": Weight((N, value_dim), ("heads", "kv"), _ones),
    },
    projections=lambda N, K, H, value_dim, num_key_heads: {
        "step": Projection((N,), ("heads",), bias=-4.0),
        "z": Projection((N, value_dim), ("heads", "kv")),
    },
    state=lambda N, K, H, value_dim, num_key_heads: (N, H, value_dim),
)
MAMBA3 = Variant(
    attend_mamba3,
    supports=able("causal packing cache grouped"),
    flops=_flops,
    memory=lambda T, S, N, H, value_dim, num_key_heads: T * N * (2 * H + value_dim),
    source="Lahoti et al. 2026, https://arxiv.org/abs/2603.15569",
    reads=("value_dim", "num_key_heads"),
    weights=lambda N, K, H, value_dim, num_key_heads: {
        "skip": Weight((N,), ("heads",), _ones),
        "scale_query": Weight((H,), ("kv",), _ones),
        "scale_key": Weight((H,), ("kv",), _ones),
        "bias_query": Weight((N, H), ("heads", "kv"), _ones),
        "bias_key": Weight((N, H), ("heads", "kv"), _ones),
    },
    projections=lambda N, K, H, value_dim, num_key_heads: {
        "step": Projection((N,), ("heads",), bias=-4.0),
        "speed": Projection((N,), ("heads",)),
        "trapezoid": Projection((N,), ("heads",)),
        "angles": Projection((H // 4,), ("kv",)),
        "z": Projection((N, value_dim), ("heads", "kv")),
    },
    state=lambda N, K, H, value_dim, num_key_heads: (N, H + 1, value_dim + 2),
)

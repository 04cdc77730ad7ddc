"""Mamba-3: a state space model by the trapezoidal rule, with a state that turns."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.recurrent import CHUNK, repeat
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, step: Array, speed: Array, trapezoid: Array, angles: Array, z: Array, skip: Array,
    scale_query: Array, scale_key: Array, bias_query: Array, bias_key: Array,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, V]: (q_t S_t + skip v_t) silu(z_t), with d = softplus(step) and

      S_t = a_t (S_(t-1) + (1 - l_t) d_t k_(t-1) v_(t-1)^T) + l_t d_t k_t v_t^T,
      a = exp(-d softplus(speed)),  l = sigmoid(trapezoid).

    Mamba-3 of rank 1 (Lahoti 2026, https://arxiv.org/abs/2603.15569, sections 3.1, 3.2 and 3.4):
    its C, B and x are query, key and value. Queries and keys are normed, get a bias, and half of
    their channels turn by the sum of pi d tanh(angles) so far, pairs being a quarter apart. There
    is no convolution, and no scale: scoring is not read.

    Args:
      step, speed, trapezoid: [B, T, N].
      angles: [B, T, R], R = H // 4.
      z: [B, T, N, V].
      skip: [N], D.
      scale_query, scale_key: [H], of the norms; bias_query, bias_key: [N, H].
      state: [B, N, H + 1, V + 2] before the first token, see `_unpack`; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    (B, T, N, V), H = z.shape, key.shape[-1]
    full = lambda x: x.astype(jnp.float32)
    size = recurrent.hold(valid, jax.nn.softplus(full(step)))
    log_decay = -jnp.maximum(jax.nn.softplus(full(speed)), 1e-4) * size
    share = jax.nn.sigmoid(full(trapezoid))
    before = jnp.zeros((B, N, H + 1, V + 2)) if state is None else state
    states, k_before, v_before, angle = _unpack(before)
    turns = jnp.pi * size[..., None] * jnp.tanh(full(angles))[:, :, None]
    turns = _sums(turns.at[:, 0].add(angle), mask.query_segments)
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
    """state: S, and the last token's key and value, which the next one adds again."""
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
    """x [B, T, N, H] with channels i and i + R turned by angle i of [B, T, N, R]."""
    R, cos, sin = angle.shape[-1], jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :R], x[..., R : 2 * R]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, x[..., 2 * R :]], axis=-1)


def _sums(x, segments):
    """Sums of x [B, T, N, R] over a segment's tokens so far."""
    if segments is None:
        return jnp.cumsum(x, axis=1)
    new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))[..., None, None]
    add = lambda a, b: (jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1])
    return jax.lax.associative_scan(add, (x, new), axis=1)[0]


def _pack(S, key, value, angle):
    """[[S, key, angle], [value, 0, 0]], [B, N, H + 1, V + 2]."""
    angle = jnp.pad(angle, ((0, 0), (0, 0), (0, key.shape[-1] - angle.shape[-1])))
    top = jnp.concatenate([S, key[..., None], angle[..., None]], axis=-1)
    return jnp.concatenate([top, jnp.pad(value, ((0, 0), (0, 0), (0, 2)))[:, :, None]], axis=2)


def _unpack(state):
    R = (state.shape[2] - 1) // 4
    return state[:, :, :-1, :-2], state[:, :, :-1, -2], state[:, :, -1, :-2], state[:, :, :R, -1]


_ones = jax.nn.initializers.ones
VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim, num_key_heads: (
        T * N * (4 * H * value_dim + 2 * min(T, CHUNK) * (H + value_dim))
    ),
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

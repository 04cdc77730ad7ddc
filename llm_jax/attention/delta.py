"""The delta rule: linear attention with error-correcting state updates."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import rms_norm
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, beta: Array, norm: Array, norm_epsilon: float, negative_eigenvalues: bool,
    decay: Array | None = None, log_speed: Array | None = None, state: Array | None = None,
    valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Delta rule attention [B, T, N, V]: RMSNorm(q_t S_t / sqrt(H)), with q and k of unit length,

      S_t = (I - b_t k_t k_t^T) diag(a_t) S_(t-1) + b_t k_t v_t^T,
      a = exp(-speed softplus(decay)),  b = sigmoid(beta).

    DeltaNet (Yang 2024, https://arxiv.org/abs/2406.06484) has no decay, Gated DeltaNet (Yang 2025,
    https://arxiv.org/abs/2412.06464, equation 10) one per head, Kimi Delta Attention (Kimi 2025,
    https://arxiv.org/abs/2510.26692, equation 1) one per channel. Gated DeltaProduct (Siems 2025,
    https://arxiv.org/abs/2502.10297, section 3) applies n keys and values per token in sequence.

    Args:
      key, value: [B, T, K n, H], the n of a head adjacent.
      beta: [B, T, N, n].
      norm: [V], scale of the per-head RMSNorm.
      decay: [B, T, N] or [B, T, N, H]; None: no decay.
      log_speed: [N], log of the speed, A_log.
      negative_eigenvalues: b = 2 sigmoid(beta), so that the transition can also reflect
        (Grazzi 2025, https://arxiv.org/abs/2411.12537).
      state: [B, N, H, V], initial state; the final state is returned with the output.
    """
    B, T, N, n = beta.shape
    b = jax.nn.sigmoid(beta.astype(jnp.float32)) * (1 + negative_eigenvalues)
    b = recurrent.hold(valid, b).swapaxes(2, 3).reshape(B, T * n, N, 1)
    log_decay = None
    if decay is not None:
        speed = jnp.exp(log_speed).reshape(N, *[1] * (decay.ndim - 3))
        log_decay = recurrent.hold(valid, -speed * jax.nn.softplus(decay.astype(jnp.float32)))

    def in_turn(x):  # [B, T, K n, H] -> [B, T n, N, H]
        x = x.reshape(B, T, -1, n, x.shape[-1]).swapaxes(2, 3)
        return recurrent.repeat(x.reshape(B, T * n, -1, x.shape[-1]), N)

    q, k, v = unit(recurrent.repeat(query, N)), unit(in_turn(key)), in_turn(value)
    y, after = delta_rule(q * q.shape[-1] ** -0.5, b * k, k, b * v, log_decay, mask, state)
    y = rms_norm(y, norm, norm_epsilon).astype(value.dtype)
    return y if state is None else (y, after)


def delta_rule(
    query: Array, erase: Array, key: Array, value: Array, log_decay: Array | None, mask: Mask,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """Chunkwise delta rule: returns query_t S_t [B, T, N, V] and the final state, where S_t is

      decay_t S_(t-1) after n updates S <- S + key (value - erase S)^T.

    Within a chunk, each update depends on the previous ones: a triangular system per chunk
    (section 3.3 of Gated DeltaNet; the WY representation of Bischof 1985).

    Args:
      query: [B, T, N, M].
      erase, key: [B, T n, N, M], the n of a token adjacent.
      value: [B, T n, N, V].
      log_decay: [B, T, N], or [B, T, N, M] per channel; None: no decay.
      state: [B, N, M, V], initial state; None: zeros.
    """
    B, T, N, M = query.shape
    n = key.shape[1] // T
    if state is None:
        state = jnp.zeros((B, N, M, value.shape[-1]))
    if n > 1:  # a token decays the state before its first update, and reads it after its last
        query = _among(query, n, n - 1)
        log_decay = None if log_decay is None else _among(log_decay, n, 0)
        if (segments := mask.query_segments) is not None:
            mask = dataclasses.replace(mask, query_segments=jnp.repeat(segments, n, axis=1))

    def chunk(state, arrays, decays):
        q, e, k, v = arrays
        recalled = (e * decays.arriving) @ state
        written = inverse(jnp.tril(decays.scores(e, k), -1)) @ (v - recalled)
        y = decays.scores(q, k) @ written + (q * decays.arriving) @ state
        added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving, written)
        return y, state * decays.through + added

    y, state = recurrent.run(chunk, (query, erase, key, value), log_decay, mask, state)
    return y[:, n - 1 :: n], state


def _among(x, n, at):
    """[B, T, ...] -> [B, T n, ...], with each entry at index `at` of its n and zeros elsewhere."""
    x = jnp.pad(x[:, :, None], [(0, 0), (0, 0), (at, n - 1 - at)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def inverse(lower: Array) -> Array:
    """Returns (I + lower)^-1 for strictly lower triangular matrices [..., c, c], recursively.

    Uses only products: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]], from single rows
    up. Two concurrent LAPACK solves deadlock on a CPU with two threads.
    """
    c = lower.shape[-1]
    size = 1 << (c - 1).bit_length()
    lower = jnp.pad(lower, [(0, 0)] * (lower.ndim - 2) + [(0, size - c)] * 2)
    inverted = jnp.ones((*lower.shape[:-1], 1, 1), lower.dtype)  # [..., blocks, m, m]
    m = 1
    while m < size:
        a, d = inverted[..., ::2, :, :], inverted[..., 1::2, :, :]
        grid = lower.reshape(*lower.shape[:-2], size // m, m, size // m, m)
        at = jnp.arange(0, size // m, 2)
        between = jnp.moveaxis(grid[..., at + 1, :, at, :], 0, -3)
        inverted = jnp.block([[a, jnp.zeros_like(a)], [-d @ between @ a, d]])
        m *= 2
    return inverted[..., 0, :c, :c]


def unit(x: Array) -> Array:
    """Normalises x to unit length along the last axis."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def flops(T: int, N: int, H: int, V: int, n: int = 1, apart: bool = False) -> float:
    """FLOPs of `delta_rule`; apart: decays per channel, with scores for visible pairs only."""
    c = min(T * n, recurrent.CHUNK)
    return T * n * N * (6 * H * V + (2 if apart else 4) * c * H + 4 * c * V + 2 * c * c / 3)


def _gated(*sizes, **reads):
    return recurrent.head_norm(*sizes, **reads) | {"log_speed": Weight((sizes[0],), ("heads",))}


def _beta(N, K, H, num_householder=1, **_):
    return {"beta": Projection((N, num_householder), ("heads", "kv"))}


def _decay(N, K, H, **reads):
    return _beta(N, K, H, **reads) | {"decay": Projection((N,), ("heads",), bias=-3.0)}


DELTANET = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim, num_householder=1, **_: (
        flops(T, N, H, value_dim, num_householder)
    ),
    memory=lambda T, S, N, H, value_dim, num_householder=1, **_: (
        T * N * max(H, value_dim) * num_householder
    ),
    source="Yang et al. 2024, https://arxiv.org/abs/2406.06484",
    reads=("value_dim", "num_key_heads", "norm_epsilon", "negative_eigenvalues"),
    weights=recurrent.head_norm,
    projections=_beta,
    state=lambda N, K, H, value_dim, **_: (N, H, value_dim),
    gate=jax.nn.silu,
)
GATED_DELTANET = dataclasses.replace(
    DELTANET,
    source="Yang et al. 2025, https://arxiv.org/abs/2412.06464",
    weights=_gated,
    projections=_decay,
)
GATED_DELTAPRODUCT = dataclasses.replace(
    GATED_DELTANET,
    source="Siems et al. 2025, https://arxiv.org/abs/2502.10297",
    reads=(*DELTANET.reads, "num_householder"),
    writes=lambda num_householder, **_: num_householder,
)
KDA = dataclasses.replace(
    GATED_DELTANET,
    source="Kimi Team 2025, https://arxiv.org/abs/2510.26692",
    flops=lambda T, S, N, H, value_dim, **_: flops(T, N, H, value_dim, apart=True),
    projections=lambda N, K, H, **reads: (
        _beta(N, K, H) | {"decay": Projection((N, H), ("heads", "kv"), bias=-3.0, rank=H)}
    ),
    gate=jax.nn.sigmoid,
)

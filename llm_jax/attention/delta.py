"""The gated delta rule: linear attention whose state is corrected towards each value."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, rate: Array, decay: Array, log_speed: Array, norm: Array, state: Array | None = None,
    valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, H]: RMSNorm(q_t S_t / sqrt(H)), q and k of length 1, b = sigmoid(rate),

      S_t = a_t (S_(t-1) - b_t k_t (k_t S_(t-1))) + b_t k_t v_t^T,  a = exp(-speed softplus(decay)).

    Yang 2025, https://arxiv.org/abs/2412.06464, equation 10, in chunks by its section 3.3.

    Args:
      rate, decay: [B, T, N].
      log_speed: [N], logarithm of the speed.
      norm: [H], scale of the norm that each head has by itself.
      state: [B, N, H, H] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    N = query.shape[2]
    rate = jax.nn.sigmoid(rate.astype(jnp.float32))
    log_decay = -jnp.exp(log_speed) * jax.nn.softplus(decay.astype(jnp.float32))
    rate, log_decay = recurrent.hold(valid, rate), recurrent.hold(valid, log_decay)
    y, after = delta_rule(
        _unit(query.astype(jnp.float32)), _unit(recurrent.repeat(key, N)),
        recurrent.repeat(value, N), rate, log_decay, mask, state,
    )  # fmt: skip
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def delta_rule(
    query: Array, key: Array, value: Array, rate: Array, log_decay: Array, mask: Mask,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """Returns q_t S_t / sqrt(H) [B, T, N, V] and the last state, as `attend` defines them.

    Within a chunk, what each token writes depends on what those before it wrote: one triangular
    system a chunk (section 3.3 of the paper; the WY form of Bischof 1985).
    """
    B, _, N, H = query.shape
    if state is None:
        state = jnp.zeros((B, N, H, value.shape[-1]))

    def chunk(state, arrays, decays):
        q, k, v, b = arrays
        b = b[..., None]
        recalled = (k * decays.arriving) @ state
        written = inverse(jnp.tril(b * decays.scores(k, k), -1)) @ (b * (v - recalled))
        y = decays.scores(q, k) @ written + (q * decays.arriving) @ state
        added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving, written)
        return y, state * decays.through + added

    return recurrent.run(chunk, (query * H**-0.5, key, value, rate), log_decay, mask, state)


def inverse(lower: Array) -> Array:
    """Returns (I + lower)^-1 of strictly lower triangular matrices [..., c, c], by halves.

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]], from single rows up: products alone.
    Not LAPACK's solve, two of which at once wait on a CPU of two threads for each other, for ever.
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
        corner = -d @ between @ a
        top = jnp.concatenate([a, jnp.zeros_like(a)], axis=-1)
        inverted = jnp.concatenate([top, jnp.concatenate([corner, d], axis=-1)], axis=-2)
        m *= 2
    return inverted[..., 0, :c, :c]


def _unit(x):
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def _within(c, H):
    """Four products of a chunk with itself, and its inverse, for each token."""
    return 8 * c * H + 2 * c * c / 3


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: T * N * (6 * H * H + _within(min(T, recurrent.CHUNK), H)),
    memory=lambda T, S, N, H: T * N * H,
    source="Yang et al. 2025, https://arxiv.org/abs/2412.06464",
    weights=lambda N, K, H: {
        "norm": Weight((H,), ("kv",), jax.nn.initializers.ones),
        "log_speed": Weight((N,), ("heads",), jax.nn.initializers.zeros),
    },
    projections=lambda N, K, H: {
        "rate": Projection((N,), ("heads",), bias=0.0),
        "decay": Projection((N,), ("heads",), bias=-3.0),
    },
    state=lambda N, K, H: (N, H, H),
)

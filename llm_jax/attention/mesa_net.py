"""MesaNet: linear attention by the least-squares fit of all values so far, solved at each token."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.delta import unit
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, beta: Array, decay: Array, ridge: Array, norm: Array, solver_steps: int,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, V]: RMSNorm(x_t G_t) with (R_t + diag(l)) x_t = q_t, q and k of length 1,

      R_t = a_t R_(t-1) + b_t k_t k_t^T,  G_t = a_t G_(t-1) + b_t k_t v_t^T,

    a = sigmoid(decay), b = sigmoid(beta), l = softplus(ridge) + 1/4: ridge regression of values on
    keys (von Oswald 2025, https://arxiv.org/abs/2506.05233), in chunks by conjugate gradients.
    Gradients are those of the exact solution.

    Args:
      beta, decay: [B, T, N].
      ridge: [N, H].
      norm: [V], scale of the norm that each head has by itself.
      solver_steps: of conjugate gradients.
      state: [B, N, H, H + V], R and G before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    B, _, N = beta.shape
    q, k, v = unit(recurrent.repeat(query, N)), unit(recurrent.repeat(key, N)), value
    both = jnp.concatenate([k, recurrent.repeat(v, N)], axis=-1)
    rate = recurrent.hold(valid, jax.nn.sigmoid(beta.astype(jnp.float32)))
    log_decay = recurrent.hold(valid, jax.nn.log_sigmoid(decay.astype(jnp.float32)))
    M = q.shape[-1]
    start = jnp.zeros((B, N, M, both.shape[-1])) if state is None else state
    ridge = (jax.nn.softplus(ridge) + 0.25)[:, None]  # [N, 1, M]

    def chunk(state, arrays, decays):
        q, k, both = arrays
        read = lambda x, of: (
            (x * decays.arriving) @ state[..., of] + decays.scores(x, k) @ both[..., of]
        )
        product = lambda x: read(x, slice(M)) + ridge * x
        solve = lambda product, q: _conjugate_gradients(product, q, solver_steps)
        x = jax.lax.custom_linear_solve(product, q, solve, symmetric=True)
        added = jnp.einsum("bnim,bniv->bnmv", k * decays.leaving, both)
        return read(x, slice(M, None)), state * decays.through + added

    arrays = q, k * rate[..., None], both
    y, after = recurrent.run(chunk, arrays, log_decay, mask, start)
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def _conjugate_gradients(product, target, steps):
    """x of product(x) = target [..., M], each last axis a system of its own."""
    dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)

    def step(_, carry):
        x, r, p, before = carry
        image = product(p)
        rate = before / (dot(p, image) + 1e-30)
        x, r = x + rate * p, r - rate * image
        now = dot(r, r)
        return x, r, r + now / (before + 1e-30) * p, now

    start = jnp.zeros_like(target), target, target, dot(target, target)
    return jax.lax.fori_loop(0, steps, step, start)[0]


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim, solver_steps, **_: T * N * (
        2 * solver_steps * H * (H + 2 * min(T, recurrent.CHUNK))
        + 2 * H * (2 * value_dim + H) + 2 * min(T, recurrent.CHUNK) * (H + value_dim)
    ),
    memory=lambda T, S, N, H, value_dim, **_: 2 * T * N * max(H, value_dim),
    source="von Oswald et al. 2025, https://arxiv.org/abs/2506.05233",
    reads=("value_dim", "num_key_heads", "solver_steps"),
    weights=lambda N, K, H, value_dim, **_: {
        "norm": Weight((value_dim,), ("kv",), jax.nn.initializers.ones),
        "ridge": Weight((N, H), ("heads", "kv")),
    },
    projections=lambda N, K, H, **_: {
        "beta": Projection((N,), ("heads",), bias=0.0),
        "decay": Projection((N,), ("heads",), bias=3.0),
    },
    state=lambda N, K, H, value_dim, **_: (N, H, H + value_dim),
    gate=jax.nn.silu,
)

"""Test-time regression of values on keys by linear models: MesaNet and TTT-Linear."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.delta import unit
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm, rms_norm
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend_mesa_net(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, beta: Array, decay: Array, ridge: Array, norm: Array, solver_steps: int,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """MesaNet [B, T, N, V]: RMSNorm(x_t G_t), (R_t + diag(l)) x_t = q_t, unit-length q and k,

      R_t = a_t R_(t-1) + b_t k_t k_t^T,  G_t = a_t G_(t-1) + b_t k_t v_t^T,

    a = sigmoid(decay), b = sigmoid(beta), l = softplus(ridge) + 1/4: ridge regression of values on
    keys (von Oswald 2025, https://arxiv.org/abs/2506.05233), in chunks, by conjugate gradients.
    The backward pass uses the gradient of the exact solution.

    Args:
      beta, decay: [B, T, N].
      ridge: [N, H].
      norm: [V], scale of the per-head RMSNorm.
      solver_steps: number of conjugate gradient iterations.
      state: [B, N, H, H + V], initial R and G; the final state is returned with the output.
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
    """Solves product(x) = target [..., M] for each vector along the last axis."""
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


MESA_NET = Variant(
    attend_mesa_net,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim, solver_steps, **_: T * N * (
        2 * solver_steps * H * (H + 2 * min(T, recurrent.CHUNK))
        + 2 * H * (2 * value_dim + H) + 2 * min(T, recurrent.CHUNK) * (H + value_dim)
    ),
    memory=lambda T, S, N, H, value_dim, **_: 2 * T * N * max(H, value_dim),
    source="von Oswald et al. 2025, https://arxiv.org/abs/2506.05233",
    reads=("value_dim", "num_key_heads", "solver_steps"),
    weights=lambda N, K, H, **reads: (
        recurrent.head_norm(N, K, H, **reads) | {"ridge": Weight((N, H), ("heads", "kv"))}
    ),
    projections=lambda N, K, H, **_: {
        "beta": Projection((N,), ("heads",), bias=0.0),
        "decay": Projection((N,), ("heads",), bias=3.0),
    },
    state=lambda N, K, H, value_dim, **_: (N, H, H + value_dim),
    gate=jax.nn.silu,
)


def attend_ttt_linear(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, rate: Array, start: Array, norm_scale: Array, norm_bias: Array, ttt_batch: int,
    state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """TTT-Linear [B, T, N, H]: f(q_t, W_t) with f(x, W) = x + LayerNorm([x, 1] W) and

      W_t = W_(t-1) - r_t d|f(k_t, W) - v_t|^2 / 2 dW,  r = sigmoid(rate) / H,

    with the gradient at the weights before t's mini-batch of ttt_batch tokens (Sun 2024,
    https://arxiv.org/abs/2407.04620, sections 2.4 to 2.7). Mini-batches start with the row.

    Args:
      rate: [B, T, N].
      start: [H + 1, N, H], W_0, weights and bias.
      norm_scale, norm_bias: [N, H].
      state: [B, N, 2 H + 3, H], the updates of W_0 before the current mini-batch, the updates so
        far, and the number of tokens in the mini-batch; the final state is returned too.
    """
    N, H = query.shape[2:]
    M, start = H + 1, start.swapaxes(0, 1)
    one = lambda x: jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    q, k, v = query.astype(jnp.float32), recurrent.repeat(key, N), recurrent.repeat(value, N)
    rate = recurrent.hold(valid, jax.nn.sigmoid(rate.astype(jnp.float32))) / H

    def learn(before, now, arrays, decays):  # updates of W_0 -> [q, 1] W of each token, last update
        q, k, v, r = arrays
        image = lambda x, added: x @ start + decays.arriving * (x @ added)
        norm = lambda z: layer_norm(z, norm_scale[:, None], norm_bias[:, None], EPSILON)
        loss = lambda z: jnp.square(k + norm(z) - v).sum() / 2
        step = r * jax.grad(loss)(image(one(k), before))
        y = image(one(q), now) - decays.scores(one(q), one(k)) @ step
        learned = jnp.einsum("bnim,bniv->bnmv", one(k) * decays.leaving, step)
        return y, now * decays.through - learned

    def token(state, arrays, decays):
        *arrays, real = arrays
        before, now, count = jnp.split(state, [M, 2 * M], axis=2)
        y, now = learn(before, now, arrays, decays)
        full = count + real == ttt_batch
        after = jnp.where(full, now, before), now, jnp.where(full, 0, count + real)
        return y, jnp.concatenate(after, axis=2)

    arrays = q, k, v, rate[..., None]
    if state is None:
        chunk = lambda added, *rest: learn(added, added, *rest)
        zeros = jnp.zeros((len(q), N, M, H))
        y, _ = recurrent.run(chunk, arrays, None, mask, zeros, largest=ttt_batch)
    else:
        real = jnp.broadcast_to(valid[..., None, None], (*q.shape[:3], 1)).astype(jnp.float32)
        y, state = recurrent.run(token, (*arrays, real), None, mask, state, largest=1)
    y = (q + layer_norm(y, norm_scale, norm_bias, EPSILON)).astype(value.dtype)
    return y if state is None else (y, state)


TTT_LINEAR = Variant(
    attend_ttt_linear,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, ttt_batch: T * N * H * (10 * H + 4 * min(T, ttt_batch)),
    memory=lambda T, S, N, H, ttt_batch: T * N * H * (1 + H // ttt_batch),
    source="Sun et al. 2024, https://arxiv.org/abs/2407.04620",
    reads=("ttt_batch",),
    weights=lambda N, K, H, ttt_batch: {
        "start": Weight((H + 1, N, H), (None, "heads", "kv"), jax.nn.initializers.normal(0.02)),
        "norm_scale": Weight((N, H), ("heads", "kv"), jax.nn.initializers.ones),
        "norm_bias": Weight((N, H), ("heads", "kv")),
    },
    projections=lambda N, K, H, ttt_batch: {"rate": Projection((N,), ("heads",), bias=0.0)},
    state=lambda N, K, H, ttt_batch: (N, 2 * H + 3, H),
    gate=jax.nn.silu,
)

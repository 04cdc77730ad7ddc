"""TTT-Linear: a linear model that learns to give each value for its key, while it is read."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, rate: Array, start: Array, norm_scale: Array, norm_bias: Array, ttt_batch: int,
    state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns f(q_t, W_t), [B, T, N, H], with f(x, W) = x + LayerNorm([x, 1] W) and

      W_t = W_(t-1) - r_t d|f(k_t, W) - v_t|^2 / 2 dW,  r = sigmoid(rate) / H,

    the gradient at the weights before t's mini-batch of ttt_batch tokens, which are counted from
    the beginning of the row. Sun 2024, https://arxiv.org/abs/2407.04620, sections 2.4 to 2.7.

    Args:
      rate: [B, T, N].
      start: [H + 1, N, H], W_0: weights and bias.
      norm_scale, norm_bias: [N, H].
      state: [B, N, 2 H + 3, H] before the first token: what has been added to W_0 up to the
        mini-batch, the same up to now, and the number of the mini-batch's tokens; returned with
        the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    N, H = query.shape[2:]
    M, start = H + 1, start.swapaxes(0, 1)
    one = lambda x: jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    q, k, v = query.astype(jnp.float32), recurrent.repeat(key, N), recurrent.repeat(value, N)
    rate = recurrent.hold(valid, jax.nn.sigmoid(rate.astype(jnp.float32))) / H

    def learn(before, now, arrays, decays):  # additions to W_0 -> [q, 1] W of each token, the last
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


VARIANT = Variant(
    attend,
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

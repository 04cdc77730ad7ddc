"""RWKV-6: a state that decays by channel, read before each token is added, with a bonus for it."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm
from llm_jax.attention.recurrent import CHUNK, repeat, sum_of_products
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, bonus: Array, norm_scale: Array, norm_bias: Array, state: Array | None = None,
    valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, H]: GroupNorm(scale (q_t S_(t-1) + (q_t * bonus * k_t) v_t^T)),

      S_t = diag(a_t) S_(t-1) + k_t v_t^T,  a = exp(-exp(decay)).

    RWKV-6 (Finch; Peng 2024, https://arxiv.org/abs/2404.05892, section 4.2), whose receptance is
    the query. A short convolution over two tokens stands for its token shift.

    Args:
      decay: [B, T, N, H].
      bonus: [N, H].
      norm_scale, norm_bias: [N, H].
      state: [B, N, H, H] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    N, H = query.shape[2:]
    query = query.astype(jnp.float32) * (H**-0.5 if scoring.scale is None else scoring.scale)
    key, v = repeat(key, N), repeat(value, N)
    # Behind 50 nothing is left of a state, and far behind there is no gradient but inf * 0.
    log_decay = -jnp.exp(jnp.minimum(decay.astype(jnp.float32), 50.0))
    y, after = sum_of_products(query, key, v, mask, log_decay, state, valid, strict=True)
    y += jnp.sum(query * bonus * key, axis=-1, keepdims=True) * v
    y = layer_norm(y, norm_scale, norm_bias, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: T * N * H * (4 * H + 3 * min(T, CHUNK)),
    memory=lambda T, S, N, H: 2 * T * N * H,
    source="Peng et al. 2024, https://arxiv.org/abs/2404.05892",
    weights=lambda N, K, H: {
        "bonus": Weight((N, H), ("heads", "kv"), jax.nn.initializers.constant(0.5)),
        "norm_scale": Weight((N, H), ("heads", "kv"), jax.nn.initializers.ones),
        "norm_bias": Weight((N, H), ("heads", "kv")),
    },
    projections=lambda N, K, H: {
        "decay": Projection((N, H), ("heads", "kv"), bias=-3.0, rank=64, inner=jnp.tanh)
    },
    state=lambda N, K, H: (N, H, H),
    gate=jax.nn.silu,
)

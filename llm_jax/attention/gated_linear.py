"""Gated linear attention: a recurrent state with a decay that depends on the token."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.recurrent import CHUNK, repeat, sum_of_products
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, norm: Array, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, H]: RMSNorm(scale q_t S_t), S_t = a_t S_(t-1) + k_t v_t^T.

    Yang 2024, https://arxiv.org/abs/2312.06635, section 4, with a = sigmoid(decay)^(1/16), one
    for a head rather than for each of its dimensions (as Dao 2024, https://arxiv.org/abs/2405.21060).

    Args:
      decay: [B, T, N].
      norm: [H], scale of the norm that each head has by itself.
      state: [B, N, H, H] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    N, H = query.shape[2:]
    scale = H**-0.5 if scoring.scale is None else scoring.scale
    log_decay = jax.nn.log_sigmoid(decay.astype(jnp.float32)) / 16
    query, key = query.astype(jnp.float32) * scale, repeat(key, N)
    y, after = sum_of_products(query, key, repeat(value, N), mask, log_decay, state, valid)
    # Of each head's output: nothing else bounds a sum without a softmax.
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: 4 * T * N * H * (H + min(T, CHUNK)),
    memory=lambda T, S, N, H: T * N * H,
    source="Yang et al. 2024, https://arxiv.org/abs/2312.06635",
    weights=lambda N, K, H: {"norm": Weight((H,), ("kv",), jax.nn.initializers.ones)},
    projections=lambda N, K, H: {"decay": Projection((N,), ("heads",), bias=3.0)},
    state=lambda N, K, H: (N, H, H),
)

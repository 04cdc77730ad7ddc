"""Mamba-2: a state space model with one decay a head, as linear attention (SSD)."""

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
    *, step: Array, z: Array, log_speed: Array, skip: Array, norm: Array,
    state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, V]: RMSNorm((q_t S_t + skip v_t) silu(z_t)), over a group's heads,

      S_t = exp(-speed d_t) S_(t-1) + d_t k_t v_t^T,  d = softplus(step).

    Dao 2024, https://arxiv.org/abs/2405.21060, section 7.1: the query is its C, the key B, the
    value x; of both there are num_key_heads, one for each group of heads. With short_conv=4
    and short_conv_bias, this and the layer's projections are all of its block; its limits of d are
    not there. No scale: scoring is not read.

    Args:
      step: [B, T, N]; the projection's bias is dt_bias.
      z: [B, T, N, V].
      log_speed: [N], A_log.
      skip: [N], D.
      norm: [N, V], scale of the norm.
      state: [B, N, H, V] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
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
    """Logarithms of speeds that are uniform from 1 to 16, as in the paper's code."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim, num_key_heads: (
        T * N * (4 * H * value_dim + 2 * min(T, CHUNK) * (H + value_dim))
    ),
    memory=lambda T, S, N, H, value_dim, num_key_heads: T * N * (H + value_dim),
    source="Dao and Gu 2024, https://arxiv.org/abs/2405.21060",
    reads=("value_dim", "num_key_heads"),
    weights=lambda N, K, H, value_dim, num_key_heads: {
        "log_speed": Weight((N,), ("heads",), _speeds),
        "skip": Weight((N,), ("heads",), jax.nn.initializers.ones),
        "norm": Weight((N, value_dim), ("heads", "kv"), jax.nn.initializers.ones),
    },
    projections=lambda N, K, H, value_dim, num_key_heads: {
        "step": Projection((N,), ("heads",), bias=-4.0),
        "z": Projection((N, value_dim), ("heads", "kv")),
    },
    state=lambda N, K, H, value_dim, num_key_heads: (N, H, value_dim),
)

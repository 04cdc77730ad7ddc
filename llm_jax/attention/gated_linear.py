"""Linear attention whose state decays: RetNet, simple GLA, GLA and HGRN2 differ in by how much."""

import dataclasses
import math

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
    *, decay: Array, norm: Array, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, V]: RMSNorm(scale q_t S_t), S_t = a_t S_(t-1) + k_t v_t^T.

    Section 4 of GLA (Yang 2024, https://arxiv.org/abs/2312.06635), a = sigmoid(decay)^(1/16). With
    one decay for all channels of a head it is simple GLA, `gated_linear`.

    Args:
      decay: [B, T, N, H], or [B, T, N].
      norm: [V], scale of the norm that each head has by itself.
      state: [B, N, H, V] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    log_decay = jax.nn.log_sigmoid(decay.astype(jnp.float32)) / 16
    return _attend(query, key, value, log_decay, norm, mask, scoring, state, valid)


def attend_retnet(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Returns `attend` with the decay 1 - 2^(-5 - n) in head n, and no scale of the norm.

    Retention (Sun 2023, https://arxiv.org/abs/2307.08621, section 2.2), with rotary positions.
    """
    log_decay = jnp.log1p(-jnp.exp2(-5.0 - jnp.arange(query.shape[2])))
    log_decay = jnp.broadcast_to(log_decay, query.shape[:3])
    return _attend(query, key, value, log_decay, None, mask, scoring, state, valid)


def attend_hgrn2(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, norm: Array, forget_floor: float, state: Array | None = None, valid: Array | None = None,
    **_,
) -> Array | tuple[Array, Array]:
    """Returns `attend` with the decay f = floor + (1 - floor) sigmoid(key), and 1 - f as the key.

    HGRN2 (Qin 2024, https://arxiv.org/abs/2404.07904, section 3.3). Its floors rise with depth, and
    are learned; here each is a setting of its layer. Queries go through SiLU.
    """
    key = key.astype(jnp.float32)
    log_decay = jax.nn.log_sigmoid(key)
    if forget_floor:
        log_decay = jnp.logaddexp(math.log(forget_floor), math.log1p(-forget_floor) + log_decay)
    log_decay = repeat(log_decay, query.shape[2])
    key = (1 - forget_floor) * jax.nn.sigmoid(-key)
    query = jax.nn.silu(query.astype(jnp.float32))
    return _attend(query, key, value, log_decay, norm, mask, scoring, state, valid)


def _attend(query, key, value, log_decay, norm, mask, scoring, state, valid):
    N, H = query.shape[2:]
    query = query.astype(jnp.float32) * (H**-0.5 if scoring.scale is None else scoring.scale)
    arrays = query, repeat(key, N), repeat(value, N)
    y, after = sum_of_products(*arrays, mask, log_decay, state, valid)
    # Of each head's output: nothing else bounds a sum without a softmax.
    y = rms_norm(y, norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def _apart(T, S, N, H, value_dim, **_):
    """FLOPs where channels decay apart: scores are of pairs that see each other alone."""
    return T * N * (4 * H * value_dim + min(T, CHUNK) * (H + 2 * value_dim))


_norm = lambda N, K, H, value_dim, **_: {
    "norm": Weight((value_dim,), ("kv",), jax.nn.initializers.ones)
}
VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H, value_dim: (
        T * N * (4 * H * value_dim + 2 * min(T, CHUNK) * (H + value_dim))
    ),
    memory=lambda T, S, N, H, value_dim, **_: T * N * max(H, value_dim),
    source="Yang et al. 2024, https://arxiv.org/abs/2312.06635",
    reads=("value_dim",),
    weights=_norm,
    projections=lambda N, K, H, value_dim: {"decay": Projection((N,), ("heads",), bias=3.0)},
    state=lambda N, K, H, value_dim, **_: (N, H, value_dim),
    gate=jax.nn.silu,
)
GLA = dataclasses.replace(
    VARIANT,
    flops=_apart,
    projections=lambda N, K, H, value_dim: {
        "decay": Projection((N, H), ("heads", "kv"), bias=3.0, rank=16)
    },
)
RETNET = dataclasses.replace(
    VARIANT,
    attend=attend_retnet,
    source="Sun et al. 2023, https://arxiv.org/abs/2307.08621",
    weights=lambda N, K, H, value_dim: {},
    projections=lambda N, K, H, value_dim: {},
)
HGRN2 = dataclasses.replace(
    VARIANT,
    attend=attend_hgrn2,
    flops=_apart,
    source="Qin et al. 2024, https://arxiv.org/abs/2404.07904",
    reads=("value_dim", "forget_floor"),
    projections=lambda N, K, H, **_: {},
)

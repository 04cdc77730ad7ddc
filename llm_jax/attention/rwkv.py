"""RWKV-6 and RWKV-7: recurrent states with decays per channel.

The receptance is the query; a short convolution over two tokens replaces the token shift.
"""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.delta import delta_rule, flops, unit
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm
from llm_jax.attention.recurrent import CHUNK, hold, repeat, sum_of_products
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend_rwkv6(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, bonus: Array, norm_scale: Array, norm_bias: Array, state: Array | None = None,
    valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """RWKV-6 time mixing [B, T, N, H]: GroupNorm(scale (q_t S_(t-1) + (q_t * bonus * k_t) v_t^T)),

      S_t = diag(a_t) S_(t-1) + k_t v_t^T,  a = exp(-exp(decay)).

    Finch (Peng 2024, https://arxiv.org/abs/2404.05892, section 4.2): the output reads the state
    before the update, with a bonus for the current token.

    Args:
      decay: [B, T, N, H].
      bonus: [N, H].
      norm_scale, norm_bias: [N, H].
      state: [B, N, H, H], initial state; the final state is returned with the output.
    """
    N, H = query.shape[2:]
    query = query.astype(jnp.float32) * scoring.factor(H)
    key, v = repeat(key, N), repeat(value, N)
    # A log decay of -50 clears the state; far below it the gradient would be inf * 0.
    log_decay = -jnp.exp(jnp.minimum(decay.astype(jnp.float32), 50.0))
    y, after = sum_of_products(query, key, v, mask, log_decay, state, valid, strict=True)
    y += jnp.sum(query * bonus * key, axis=-1, keepdims=True) * v
    y = layer_norm(y, norm_scale, norm_bias, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def attend_rwkv7(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, rate: Array, removal: Array, replacement: Array, bonus: Array,
    norm_scale: Array, norm_bias: Array, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """RWKV-7 time mixing [B, T, N, H]: GroupNorm(q_t S_t) + (q_t * bonus * k_t) v_t^T,

      S_t = diag(w_t) S_(t-1) - (r_t * u_t) (u_t S_(t-1)) + k_t v_t^T,

    with w = exp(-sigmoid(decay) / sqrt(e)), r = sigmoid(rate), u = removal * key at unit length and
    k = key (1 + replacement (r - 1)). Goose (Peng 2025, https://arxiv.org/abs/2503.14456, section
    4.1): a delta rule with separate removal and replacement keys. The paper's mixing of values with
    those of the first layer is not implemented.

    Args:
      decay, rate: [B, T, N, H].
      removal, replacement, bonus, norm_scale, norm_bias: [N, H].
      state: [B, N, H, H], initial state; the final state is returned with the output.
    """
    B, T, N, H = query.shape
    query, key, v = query.astype(jnp.float32), repeat(key, N), repeat(value, N)
    log_decay = -jnp.exp(-0.5) * jax.nn.sigmoid(decay.astype(jnp.float32))
    rate = jax.nn.sigmoid(rate.astype(jnp.float32))
    removed, added = unit(removal * key), key * (1 + replacement * (rate - 1))
    # Two delta rule steps per token: removal, then addition. The removal key reads the state before
    # the decay, the delta rule after it: divide by the decay, which is above 0.54.
    pair = lambda a, b: jnp.stack([a, b], axis=2).reshape(B, 2 * T, N, H)
    none = jnp.zeros_like(key)
    erase = pair(removed * jnp.exp(-log_decay), none)
    write = pair(hold(valid, rate * removed), hold(valid, added))
    log_decay = hold(valid, log_decay)
    y, after = delta_rule(query * H**-0.5, erase, write, pair(none, v), log_decay, mask, state)
    # Outputs are scaled by 1 / sqrt(H), which makes this epsilon the paper's, H times larger.
    y = layer_norm(y, norm_scale, norm_bias, EPSILON)
    y += jnp.sum(query * bonus * added, axis=-1, keepdims=True) * v
    return y.astype(value.dtype) if state is None else (y.astype(value.dtype), after)


def _weights(**starts):
    """Weights [N, H] with these initial values."""
    init = jax.nn.initializers.constant
    one = lambda start, shape: Weight(shape, ("heads", "kv"), init(start))
    return lambda N, K, H: {name: one(start, (N, H)) for name, start in starts.items()}


RWKV6 = Variant(
    attend_rwkv6,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: T * N * H * (4 * H + 3 * min(T, CHUNK)),
    memory=lambda T, S, N, H: 2 * T * N * H,
    source="Peng et al. 2024, https://arxiv.org/abs/2404.05892",
    weights=_weights(bonus=0.5, norm_scale=1.0, norm_bias=0.0),
    projections=lambda N, K, H: {
        "decay": Projection((N, H), ("heads", "kv"), bias=-3.0, rank=64, inner=jnp.tanh)
    },
    state=lambda N, K, H: (N, H, H),
    gate=jax.nn.silu,
)
RWKV7 = Variant(
    attend_rwkv7,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: flops(T, N, H, H, 2, apart=True),
    memory=lambda T, S, N, H: 4 * T * N * H,
    source="Peng et al. 2025, https://arxiv.org/abs/2503.14456",
    weights=_weights(removal=0.7, replacement=1.0, bonus=0.0, norm_scale=1.0, norm_bias=0.0),
    projections=lambda N, K, H: {
        "decay": Projection((N, H), ("heads", "kv"), bias=-3.0, rank=64, inner=jnp.tanh),
        "rate": Projection((N, H), ("heads", "kv"), bias=0.0, rank=64),
    },
    state=lambda N, K, H: (N, H, H),
)

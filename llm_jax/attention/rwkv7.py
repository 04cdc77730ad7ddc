"""RWKV-7: a delta rule that decays by channel, and forgets another key than the one it adds."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.delta import delta_rule, flops, unit
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, layer_norm
from llm_jax.attention.recurrent import hold, repeat
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, decay: Array, rate: Array, removal: Array, replacement: Array, bonus: Array,
    norm_scale: Array, norm_bias: Array, state: Array | None = None, valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Returns [B, T, N, H]: GroupNorm(q_t S_t) + (q_t * bonus * k_t) v_t^T,

      S_t = diag(w_t) S_(t-1) - (r_t * u_t) (u_t S_(t-1)) + k_t v_t^T,

    with w = exp(-sigmoid(decay) / sqrt(e)), r = sigmoid(rate), u = removal * key at length 1, and
    k = key (1 + replacement (r - 1)). RWKV-7 (Goose; Peng 2025, https://arxiv.org/abs/2503.14456,
    section 4.1), whose receptance is the query; without its mixing of values with the first
    layer's. A short convolution over two tokens stands for its token shift.

    Args:
      decay, rate: [B, T, N, H].
      removal, replacement, bonus, norm_scale, norm_bias: [N, H].
      state: [B, N, H, H] before the first token; returned with the output.
      valid: [B, T], of the tokens that may change the state; given with it.
    """
    B, T, N, H = query.shape
    query, key, v = query.astype(jnp.float32), repeat(key, N), repeat(value, N)
    log_decay = -jnp.exp(-0.5) * jax.nn.sigmoid(decay.astype(jnp.float32))
    rate = jax.nn.sigmoid(rate.astype(jnp.float32))
    removed, added = unit(removal * key), key * (1 + replacement * (rate - 1))
    # One step forgets, the next adds. A step reads behind the decay, this reads before it: divided
    # by a decay of more than 0.54.
    pair = lambda a, b: jnp.stack([a, b], axis=2).reshape(B, 2 * T, N, H)
    none = jnp.zeros_like(key)
    erase = pair(removed * jnp.exp(-log_decay), none)
    write = pair(hold(valid, rate * removed), hold(valid, added))
    log_decay = hold(valid, log_decay)
    y, after = delta_rule(query * H**-0.5, erase, write, pair(none, v), log_decay, mask, state)
    # Of scaled outputs: its epsilon is the H times larger one of the paper.
    y = layer_norm(y, norm_scale, norm_bias, EPSILON)
    y += jnp.sum(query * bonus * added, axis=-1, keepdims=True) * v
    return y.astype(value.dtype) if state is None else (y.astype(value.dtype), after)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=lambda T, S, N, H: flops(T, N, H, H, 2, apart=True),
    memory=lambda T, S, N, H: 4 * T * N * H,
    source="Peng et al. 2025, https://arxiv.org/abs/2503.14456",
    weights=lambda N, K, H: {
        name: Weight((N, H), ("heads", "kv"), jax.nn.initializers.constant(start))
        for name, start in {
            "removal": 0.7, "replacement": 1.0, "bonus": 0.0, "norm_scale": 1.0, "norm_bias": 0.0
        }.items()
    },
    projections=lambda N, K, H: {
        "decay": Projection((N, H), ("heads", "kv"), bias=-3.0, rank=64, inner=jnp.tanh),
        "rate": Projection((N, H), ("heads", "kv"), bias=0.0, rank=64),
    },
    state=lambda N, K, H: (N, H, H),
)

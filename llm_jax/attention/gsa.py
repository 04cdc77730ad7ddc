"""Gated slot attention (GSA): softmax attention over memory slots with forget gates."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import recurrent
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import EPSILON, rms_norm
from llm_jax.attention.recurrent import CHUNK, repeat
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, forget: Array, norm: Array, state: Array | None = None, valid: Array | None = None, **_,
) -> Array | tuple[Array, Array]:
    """Gated slot attention [B, T, N, V]: RMSNorm(SiLU(softmax(scale K_t q_t) V_t)), M slots K, V,

      K_t = diag(a_t) K_(t-1) + (1 - a_t) k_t^T,  likewise V_t,  a = sigmoid(forget)^(1/8).

    Zhang 2024, https://arxiv.org/abs/2409.07146, section 3. SiLU is applied to queries, keys and
    values.

    Args:
      forget: [B, T, N, M].
      norm: [V], scale of the per-head RMSNorm.
      state: [B, N, M, H + V], initial K and V; the final state is returned with the output.
    """
    (B, _, N, H), M = query.shape, forget.shape[-1]
    scale = scoring.factor(H)
    q, k, v = (jax.nn.silu(repeat(x, N)) for x in (query, key, value))
    log_decay = recurrent.hold(valid, jax.nn.log_sigmoid(forget.astype(jnp.float32)) / 8)
    before = jnp.zeros((B, N, M, H + v.shape[-1])) if state is None else state

    def chunk(slots, arrays, decays):
        q, k, v, written = arrays
        arrived = jnp.einsum("bnih,bnmh->bnim", q, slots[..., :H]) * decays.arriving
        products = jnp.einsum("bnih,bnjh->bnij", q, k)
        share = jax.nn.softmax(decays.mix(products, written) + arrived, axis=-1)
        y = decays.scores(share, written) @ v + (share * decays.arriving) @ slots[..., H:]
        both = jnp.concatenate([k, v], axis=-1)
        added = jnp.einsum("bnim,bniv->bnmv", written * decays.leaving, both)
        return y, slots * decays.through + added

    arrays = q * scale, k, v, -jnp.expm1(log_decay)
    y, after = recurrent.run(chunk, arrays, log_decay, mask, before)
    y = rms_norm(jax.nn.silu(y), norm, EPSILON).astype(value.dtype)
    return y if state is None else (y, after)


def _flops(T, S, N, H, value_dim, slots):
    chunk = min(T, CHUNK) * (2 * H + 2 * slots + 2 * value_dim)
    return T * N * (4 * slots * (H + value_dim) + chunk)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped"),
    flops=_flops,
    memory=lambda T, S, N, H, value_dim, slots: T * N * (H + value_dim + slots),
    source="Zhang et al. 2024, https://arxiv.org/abs/2409.07146",
    reads=("value_dim", "slots"),
    weights=recurrent.head_norm,
    projections=lambda N, K, H, value_dim, slots: {
        "forget": Projection((N, slots), ("heads", "kv"), bias=3.0)
    },
    state=lambda N, K, H, value_dim, slots: (N, slots, H + value_dim),
)

"""Multi-head latent attention (MLA; DeepSeek): a KV cache of one latent vector per token."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blockwise, dense
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: None, mask: Mask, scoring: Scoring = PLAIN,
    *, up_key: Array, up_value: Array,
) -> Array:
    """Multi-head latent attention: softmax(q_c (c U_k)^T + q_r r^T) (c U_v), latent vectors c.

    Section 2.1 of DeepSeek-V2, https://arxiv.org/abs/2405.04434. With a cache, U_k and U_v are
    absorbed into queries and outputs, and keys and values are not materialised (section 2.1.2).

    Args:
      query: [B, T, N, H + R]; the last R dimensions are rotary.
      key: [B, S, 1, C + R]: the latent vector, then the rotary dimensions shared by all heads.
      value: unused.
      up_key, up_value: [C, N, H].
    """
    C, N, H = up_key.shape
    latent, shared = key[..., :C], key[..., C:]
    scoring = dataclasses.replace(scoring, scale=scoring.factor(query.shape[-1]))
    if mask.whole:
        make = lambda up: jnp.einsum("bsc,cnh->bsnh", latent[:, :, 0], up.astype(latent.dtype))
        shared = jnp.broadcast_to(shared, (*shared.shape[:2], N, shared.shape[-1]))
        key = jnp.concatenate([make(up_key), shared], axis=-1)
        return blockwise.attend(query, key, make(up_value), mask, scoring)
    ours = jnp.einsum("btnh,cnh->btnc", query[..., :H], up_key.astype(query.dtype))
    query = jnp.concatenate([ours, query[..., H:]], axis=-1)
    y = dense.attend(query, key, latent, mask, scoring)
    return jnp.einsum("btnc,cnh->btnh", y, up_value.astype(y.dtype))


VARIANT = Variant(
    attend,
    supports=able("- grouped cross weights"),
    flops=lambda T, S, N, H, latent_rotary: T * S * N * (4 * H + 2 * latent_rotary),
    memory=lambda T, S, N, H, latent_rotary: T * N + 2 * S * N * H,
    source="DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434, section 2.1",
    reads=("latent_rotary",),
)

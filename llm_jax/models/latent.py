"""Projections of multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.attention import Mask, Variant
from llm_jax.models.attention import Attention
from llm_jax.models.layers import Dense, Norm, normal
from llm_jax.models.positions import rotate


class LatentAttention(Attention):
    """Multi-head latent attention (MLA): keys and values are projections of a latent vector (2.1).

    The KV cache holds the latent vector and the rotary key shared by all heads, [B, S, 1, C + R];
    without rotary positions R = 0.
    """

    def project(
        self, variant: Variant, x: jax.Array, mask: Mask, source: None,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, None, dict[str, Any]]:
        """Returns query [B, T, N, H + R], key [B, S, 1, C + R] and the up-projection matrices."""
        cfg, D, C = self.cfg, (self.cfg.embed_dim,), self.cfg.latent_kv
        N, H = cfg.num_heads, cfg.head_dim
        R = cfg.latent_rotary if cfg.positions == "rotary" else 0
        dense = lambda inputs, outputs, axes, name: Dense(
            cfg, inputs, outputs, axes, use_bias=False, name=name
        )
        origin, width, axis = x, D, "embed"
        if cfg.latent_query:
            width, axis = (cfg.latent_query,), "latent"
            origin = Norm(cfg, name="query_norm")(dense(D, width, ("embed", axis), "query_down")(x))
        query = dense(width, (N, H + R), (axis, "heads", "kv"), "query")(origin)
        key = dense(D, (C + R,), ("embed", "latent"), "key_value_down")(x)
        latent = Norm(cfg, name="latent_norm")(key[..., :C])[:, :, None]
        if R:
            turn = lambda x: rotate(cfg, x, positions)
            query = jnp.concatenate([query[..., :H], turn(query[..., H:])], axis=-1)
            latent = jnp.concatenate([latent, turn(key[:, :, None, C:])], axis=-1)
        init = nn.with_logical_partitioning(normal(cfg, C), ("latent", "heads", "kv"))
        up = {name: self.param(name, init, (C, N, H)) for name in ("up_key", "up_value")}
        return query, latent, None, up


def attention_layer(kind: str) -> type[Attention]:
    """Returns the attention layer class with the projections for an attention variant."""
    return LatentAttention if kind == "latent" else Attention

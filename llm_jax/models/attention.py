"""Attention as a layer: projections, rotary positions and the key/value cache.

The maths between query, key and value is a pure function of arrays in llm_jax.attention,
chosen by name.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax import attention as variants
from llm_jax.attention.mask import Mask
from llm_jax.models.layers import Dense, annotate, residual_scale, rotary_rates, rotate


class Attention(nn.Module):
    """Multi-head attention (Vaswani 2017, 3.2) with grouped queries (Ainslie 2023).

    With cache_length S, keys and values live in the 'cache' collection [B, S, K, H]: a call
    writes its own at `positions` and attends to all that are there. Cross-attention fills
    its cache when `source` is given and reads it when it is not.
    """

    cfg: FrozenConfigDict
    kind: str = "dense"
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        *,
        source: jax.Array | None = None,
        bias: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D]; source [B, S, D] is what cross-attention looks at."""
        cfg = self.cfg
        D, N, K, H = cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        # Without a scale on the scores, the query's initialiser carries it (T5's practice).
        unscaled = H**-0.5 if cfg.init == "fan_in" and cfg.attention_scale == 1 else 1.0
        query = Dense(cfg, (D,), (N, H), ("embed", "heads", "kv"), unscaled, name="query")(x)
        key = Dense(cfg, (D,), (K, H), ("embed", "kv_heads", "kv"), name="key")
        value = Dense(cfg, (D,), (K, H), ("embed", "kv_heads", "kv"), name="value")
        if self.cross:
            k, v = self._cross_cache(key, value, source)
        else:
            k, v = key(x), value(x)
            if cfg.positions == "rotary":
                query = rotate(query, positions, rotary_rates(cfg))
                k = rotate(k, positions, rotary_rates(cfg))
            if self.cache_length:
                k, v = self._self_cache(k, v, positions)
        query = annotate(query, "batch", "length", "activation_heads", "activation_kv")
        k = annotate(k, "batch", "length", "activation_kv_heads", "activation_kv")
        v = annotate(v, "batch", "length", "activation_kv_heads", "activation_kv")

        if self.kind == "local":
            mask = dataclasses.replace(mask, window=cfg.window)
        dropout = 0.0 if self.deterministic else cfg.attention_dropout
        y = variants.get(self.kind).attend(
            query,
            k,
            v,
            mask,
            bias=bias,
            scale=cfg.attention_scale or None,
            dropout_rate=dropout,
            dropout_key=self.make_rng("dropout") if dropout else None,
        )
        return Dense(cfg, (N, H), (D,), ("heads", "kv", "embed"), residual_scale(cfg), name="out")(y)

    def _self_cache(self, k, v, positions):
        shape = (k.shape[0], self.cache_length, *k.shape[2:])
        keys = self.variable("cache", "keys", jnp.zeros, shape, k.dtype)
        values = self.variable("cache", "values", jnp.zeros, shape, v.dtype)
        # A row's position is its slot: rows of unequal length advance independently.
        rows = jnp.arange(k.shape[0])[:, None]
        keys.value = keys.value.at[rows, positions].set(k)
        values.value = values.value.at[rows, positions].set(v)
        return keys.value, values.value

    def _cross_cache(self, key, value, source):
        if not self.cache_length:
            return key(source), value(source)
        if source is not None:
            k, v = key(source), value(source)
            self.put_variable("cache", "keys", k)
            self.put_variable("cache", "values", v)
        return self.get_variable("cache", "keys"), self.get_variable("cache", "values")

"""Attention as a layer: projections, rotary positions and the key/value cache.

The maths between query, key and value is a pure function of arrays in llm_jax.attention,
chosen by name.
"""

from functools import partial

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
    its cache when `source` is given and reads it when it is not. What the kind of attention
    plans without gradient, it writes to the 'plan' collection where that is mutable, and reads
    where it is there already.
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
        variant = variants.get(self.kind)
        # Without a scale on the scores, the query's initialiser carries it (T5's practice).
        unscaled = H**-0.5 if cfg.init == "fan_in" and cfg.attention_scale == 1 else 1.0
        dense = partial(Dense, cfg, use_bias=cfg.use_bias and cfg.attention_bias)
        query = dense((D,), (N, H), ("embed", "heads", "kv"), unscaled, name="query")(x)
        key = None
        if not variant.shared_qk:
            key = dense((D,), (K, H), ("embed", "kv_heads", "kv"), name="key")
        value = dense((D,), (K, H), ("embed", "kv_heads", "kv"), name="value")
        if self.cross:
            k, v = self._cross_cache(key, value, source)
        else:
            k, v = key and key(x), value(x)
            if cfg.positions == "rotary":
                query = rotate(query, positions, rotary_rates(cfg))
                k = key and rotate(k, positions, rotary_rates(cfg))
            if self.cache_length:
                if "cache" not in variant.supports:
                    raise ValueError(f"attention {self.kind!r} cannot continue from a cache")
                k, v = self._self_cache(k, v, positions)
        query = annotate(query, "batch", "length", "activation_heads", "activation_kv")
        k = key and annotate(k, "batch", "length", "activation_kv_heads", "activation_kv")
        v = annotate(v, "batch", "length", "activation_kv_heads", "activation_kv")

        options = {name: cfg[name] for name in variant.reads}
        if variant.plan:
            options["plan"] = self._plan(variant, query, options)
        dropout = 0.0 if self.deterministic else cfg.attention_dropout
        y = variant.attend(
            query,
            k,
            v,
            mask,
            bias=bias,
            scale=cfg.attention_scale or None,
            dropout_rate=dropout,
            dropout_key=self.make_rng("dropout") if dropout else None,
            **options,
        )
        return dense((N, H), (D,), ("heads", "kv", "embed"), residual_scale(cfg), name="out")(y)

    def _plan(self, variant, query, options):
        # Drawn even where the plan is there: later draws must not depend on it.
        key = jax.random.key(0) if self.deterministic else self.make_rng("dropout")
        if self.has_variable("plan", "plan"):
            return self.get_variable("plan", "plan")
        plan = variant.plan(query, key, **options)
        if self.is_mutable_collection("plan"):
            self.put_variable("plan", "plan", plan)
        return plan

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

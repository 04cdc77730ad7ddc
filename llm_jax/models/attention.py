"""Attention layer: projections, rotary positions and the KV cache.

The attention function itself is a pure function of arrays in llm_jax.attention, selected by name.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax import attention as variants
from llm_jax.attention import Bias, Mask, Projection, Scoring, Variant
from llm_jax.models import split
from llm_jax.models.convolution import ShortConvolution
from llm_jax.models.layers import Dense, Norm, annotate, residual_scale
from llm_jax.models.positions import rotate

NOWHERE = -(2**30)  # position of an empty cache slot, which no query attends to


def kept(cfg: FrozenConfigDict) -> int | None:
    """Returns the number of previous tokens in a layer's KV cache; None: all of them.

    A layer with a position bias, a function of cache indices, caches all tokens.
    """
    variant = variants.get(cfg.attention)
    if variant.reach is None or cfg.positions in ("relative", "alibi"):
        return None
    return max(variant.reach(**variant.settings(cfg)) - 1, 1)


class Attention(nn.Module):
    """Multi-head attention (Vaswani 2017, 3.2) with grouped queries (GQA; Ainslie 2023).

    With cache_length S, the 'cache' collection holds keys and values [B, K, S, H]: a call writes
    its own at `positions` (positions >= S are padding and are dropped) and attends to all of them.
    With a window, only the tokens in it are cached; recurrent variants cache their state instead.
    Cross-attention fills its cache if `source` is given and reads it otherwise.
    Attention weights [B, N, T, S] are stored in the 'weights' collection if it is mutable.
    Decisions without a gradient (LSH's buckets) are read from the 'decided' collection if present,
    and otherwise written to it if it is mutable.
    """

    cfg: FrozenConfigDict
    kind: str = "dense"
    cross: bool = False
    deterministic: bool = True
    cache_length: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask,
        *, source: jax.Array | None = None, bias: Bias | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D]; source [B, S, D]: the input of cross-attention's keys."""
        cfg = self.cfg
        variant = variants.get(self.kind)
        query, key, value, options = self.project(variant, x, mask, source, positions)
        if not self.cross and self._caches(variant):
            key, value, mask = self._remember(key, value, mask, positions)
        query, key, value = jax.tree.map(self._annotated, (query, key, value))
        options |= self._learned(variant, x, positions)
        if variant.decide:
            options["decided"] = self._decide(variant, query)
        scoring = self._scoring(bias)
        if lacking := (mask.asked | scoring.asked) - variant.supports:
            raise ValueError(
                f"attention {self.kind!r} does not support: {', '.join(sorted(lacking))}"
            )
        if self.is_mutable_collection("weights") and not self.is_initializing():
            weights = _weights(variant, query, key, value, mask, scoring, options)
            self.sow("weights", "self", weights)
        if variant.state and self.cache_length:
            y = self._recur(variant, query, key, value, mask, scoring, positions, options)
        else:
            y = split.attend(variant, query, key, value, mask, scoring, options)
        if variant.loss:
            y, losses = y
            segments = mask.query_segments
            real = jnp.ones(losses.shape) if segments is None else jnp.float32(segments > 0)
            sums = {"attention": jnp.vdot(losses, real), "queries": real.sum()}
            self.sow("losses", "attention", sums)
        heads = y.shape[2:]
        if cfg.output_gate:
            bias = 0.0 if cfg.use_bias else None
            made = Projection(heads, ("heads", "kv"), bias, rank=cfg.output_gate_rank)
            y *= variant.gate(self._projected("gate", made, x))
        out = self._dense(heads, (cfg.embed_dim,), ("heads", "kv", "embed"), residual_scale(cfg))
        return out(y, name="out")

    def _annotated(self, x):
        """Annotates queries, keys or values [B, T, heads, H]; a single head is not sharded."""
        heads = "activation_heads" if x.shape[2] == self.cfg.num_heads else "activation_kv_heads"
        return x if x.shape[2] == 1 else annotate(x, "batch", "length", heads, "activation_kv")

    def project(
        self, variant: Variant, x: jax.Array, mask: Mask, source: jax.Array | None,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, dict[str, Any]]:
        """Returns query [B, T, N, H], key, value [B, S, K, H] and more arguments of attend."""
        cfg = self.cfg
        N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        options = variant.settings(cfg)
        V, shared = options.get("value_dim", H), options.get("num_key_heads", 0)
        many, few = (N, "heads"), (shared or K, "kv_heads")
        of_query, of_value = (few, many) if shared else (many, few)
        writes = variant.writes(**options)
        # If scores are not scaled, the query initialiser includes the scale (as in T5).
        unscaled = H**-0.5 if cfg.init == "fan_in" and cfg.attention_scale == 1 else 1.0

        def made(x, name, heads, size=H, scale=1.0, times=1):
            n, axis = heads
            dense = self._dense((cfg.embed_dim,), (n * times, size), ("embed", axis, "kv"), scale)
            y = dense(x, name=name)
            if not cfg.short_conv or self.cross:
                return y
            # Recurrent variants apply SiLU after it, as in their papers; softmax variants do not.
            convolution = ShortConvolution(
                cfg.short_conv, axis, variant.state is not None, cfg.short_conv_bias,
                self.cache_length, name=f"{name}_conv",
            )  # fmt: skip
            return convolution(y, mask.query_segments, positions)

        query = self._normed("query_norm", made(x, "query", of_query, scale=unscaled))
        key = None
        if not variant.shared_qk:
            key = lambda x: self._normed("key_norm", made(x, "key", few, times=writes))
        value = lambda x: made(x, "value", of_value, V, times=writes)
        if self.cross:
            return query, *self._cross_cache(key, value, source), {}
        k, v = key and key(x), value(x)
        if cfg.positions == "rotary":
            turn = lambda a: rotate(cfg, a, positions)
            query, k = jax.tree.map(turn, (query, k))
        return query, k, v, options

    def _normed(self, name, x):
        """Normalises queries or keys [B, T, N, H] per head, or over all heads of a token."""
        if not self.cfg.qk_norm:
            return x
        joint = x.reshape(*x.shape[:2], -1) if self.cfg.qk_norm_joint else x
        return Norm(self.cfg, name=name)(joint).reshape(x.shape)

    def _dense(self, inputs, outputs, axes, scale=1.0):
        cfg = self.cfg
        bias = lambda name: (cfg.use_bias and cfg.attention_bias) or (
            cfg.qkv_bias and name in ("query", "key", "value")
        )
        dense = partial(Dense, cfg, inputs, outputs, axes, scale)
        return lambda x, name: dense(bias(name), name=name)(x)

    def _scoring(self, bias: Bias | None) -> Scoring:
        cfg, sinks = self.cfg, None
        dropout = 0.0 if self.deterministic else cfg.attention_dropout
        if cfg.attention_sinks and not self.cross:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("heads",))
            sinks = self.param("sinks", zeros, (cfg.num_heads,))
        return Scoring(
            bias,
            sinks,
            self.make_rng("dropout") if dropout else None,
            dropout,
            scale=cfg.attention_scale or None,
            softcap=cfg.attention_softcap or None,
        )

    def _learned(self, variant, x, positions):
        """Returns the learned arrays and projections of an attention variant, by argument name."""
        cfg = self.cfg
        sizes, options = (cfg.num_heads, cfg.num_kv_heads, cfg.head_dim), variant.settings(cfg)
        learned = {}
        for name, weight in variant.weights(*sizes, **options).items():
            init = nn.with_logical_partitioning(weight.init, weight.axes)
            learned[name] = self.param(name, init, weight.shape)
        for name, made in variant.projections(*sizes, **options).items():
            y = self._projected(name, made, x)
            turned = made.rotary and cfg.positions == "rotary"
            learned[name] = rotate(cfg, y, positions) if turned else y
            if made.of_keys and self._caches(variant):
                (learned[name],) = self._cached(positions, **{f"{name}s": learned[name]})
        return learned

    def _projected(self, name, made, x):
        """Applies a Projection to x [B, T, D]."""
        cfg, width, axis = self.cfg, self.cfg.embed_dim, "embed"
        x = jax.lax.stop_gradient(x) if made.detached else x
        if made.rank:
            down = Dense(cfg, (width,), (made.rank,), ("embed", "latent"), use_bias=False,
                         name=f"{name}_down")  # fmt: skip
            x, width, axis = made.inner(down(x)), made.rank, "latent"
        return Dense(
            cfg, (width,), made.shape, (axis, *made.axes), use_bias=made.bias is not None,
            bias_start=made.bias or 0.0, name=name,
        )(x)  # fmt: skip

    def _decide(self, variant, query):
        # Split the key even if a decision is stored: later random draws must not depend on it.
        key = jax.random.key(0) if self.deterministic else self.make_rng("dropout")
        if self.has_variable("decided", "decided"):
            return self.get_variable("decided", "decided")
        decided = variant.decide(query, key, **variant.settings(self.cfg))
        if self.is_mutable_collection("decided"):
            self.put_variable("decided", "decided", decided)
        return decided

    def _recur(self, variant, query, key, value, mask, scoring, positions, options):
        cfg = self.cfg
        sizes = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        shape = variant.state(*sizes, **variant.settings(cfg))
        state = self.variable("cache", "state", jnp.zeros, (len(query), *shape), jnp.float32)
        y, state.value = variant.attend(
            query, key, value, mask, scoring,
            state=state.value, valid=positions < self.cache_length, **options,
        )  # fmt: skip
        return y

    def _caches(self, variant):
        return self.cache_length and not variant.state and "cache" in variant.supports

    def _remember(self, key, value, mask, positions):
        """Updates the KV cache; returns all cached keys and values and their mask."""
        arrays, length = {"keys": key, "values": value}, kept(self.cfg)
        if length is None or length >= self.cache_length:
            return *self._cached(positions, **arrays), mask
        *arrays, places = self._rolled(positions, length, **arrays)
        return *arrays, dataclasses.replace(mask, key_places=places)

    def _cached(self, positions, **arrays):
        """Writes each array [B, T, ...] into its cache [B, S, ...], and yields the cache."""
        # The slot is the row's position, so rows of different lengths advance independently.
        rows = jnp.arange(len(positions))[:, None]
        for name, x in arrays.items():
            if x is None:  # the latent variant has no values
                yield None
                continue
            # Stored [B, K, S, ...], as matrix products take it: no step transposes the cache.
            B, _, K, *sizes = x.shape
            shape = (B, K, self.cache_length, *sizes)
            cache = self.variable("cache", name, jnp.zeros, shape, x.dtype)
            cache.value = cache.value.at[rows, :, positions].set(x)
            yield cache.value.swapaxes(1, 2)

    def _rolled(self, positions, length, **arrays):
        """Rolling cache of the last `length` tokens: a token's slot is its position % length.

        Yields the cached entries followed by the new ones for each [B, T, ...], then positions.
        """
        rows, real = jnp.arange(len(positions))[:, None], positions < self.cache_length
        last = jnp.where(real, positions, -1).max(axis=1, keepdims=True)
        slots = jnp.where(real & (positions > last - length), positions % length, length)
        for name, x in (arrays | {"places": positions}).items():
            shape, empty = (x.shape[0], length, *x.shape[2:]), NOWHERE if name == "places" else 0
            cache = self.variable("cache", name, jnp.full, shape, empty, x.dtype)
            both = jnp.concatenate([cache.value, x], axis=1)
            cache.value = cache.value.at[rows, slots].set(x)
            yield both

    def _cross_cache(self, key, value, source):
        if not self.cache_length:
            return key(source), value(source)
        if source is not None:
            k, v = key(source), value(source)
            self.put_variable("cache", "keys", k)
            self.put_variable("cache", "values", v)
        return self.get_variable("cache", "keys"), self.get_variable("cache", "values")


def _weights(variant, query, key, value, mask, scoring, options):
    """Returns attention weights [B, N, T, S] of any kind: its outputs for one-hot values."""
    B, S, K, _ = value.shape
    one_hot = jnp.broadcast_to(jnp.eye(S)[:, None], (B, S, K, S))
    weights = variant.attend(query, key, one_hot, mask, scoring, **options)
    return weights.swapaxes(1, 2).astype(jnp.float32)

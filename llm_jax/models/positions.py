"""Position encodings: sinusoidal, rotary (RoPE) with scaling, and T5's and ALiBi's biases."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.attention import Bias
from llm_jax.models.layers import normal


def sinusoids(positions: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal encoding (Vaswani 2017, 3.5): [B, T] -> [B, T, dim], all sines, then cosines."""
    rates = 10_000.0 ** (-jnp.arange(0, dim, 2) / dim)
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)[..., : dim // 2]], axis=-1)


def rotary_rates(cfg: FrozenConfigDict, dim: int = 0) -> jax.Array:
    """Rotary frequencies [dim / 2] in radians per position (dim 0: head_dim), with scaling.

    With s = rotary_factor and L = rotary_original_length, cfg.rotary_scaling is:
      linear: divides all frequencies by s (Chen 2023, https://arxiv.org/abs/2306.15595).
      ntk: increases the base so that the lowest frequency is divided by s (bloc97 2023; YaRN, 3.1).
      llama3: divides by s for wavelengths above L, by 1 below L / 4, and interpolates in between
        (Llama 3's code; its frequency factors are 1 and 4).
      yarn: divides by s for fewer than 1 rotation within L, by 1 for more than 32, with a linear
        ramp over the dimensions in between (Peng 2023, https://arxiv.org/abs/2309.00071, 3.2).
    """
    half, s, L = (dim or cfg.head_dim) // 2, cfg.rotary_factor, cfg.rotary_original_length
    base, scaling = cfg.rotary_base, cfg.rotary_scaling
    if scaling == "ntk":
        base *= s ** (half / (half - 1))
    rates = base ** (-jnp.arange(half) / half)
    if scaling == "linear":
        return rates / s
    if scaling == "llama3":
        waves = L * rates / (2 * math.pi)
        keep = jnp.clip((waves - 1) / (4 - 1), 0, 1)
    elif scaling == "yarn":
        # The dimension with this many rotations within L; the paper's code rounds it.
        at = lambda waves: half * math.log(L / (2 * math.pi * waves)) / math.log(base)
        first, last = at(32), at(1)
        if cfg.rotary_truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        keep = 1 - jnp.clip((jnp.arange(half) - first) / max(last - first, 0.001), 0, 1)
    else:
        return rates
    return rates * (keep + (1 - keep) / s)


def rotary_strength(cfg: FrozenConfigDict) -> float:
    """YaRN's factor on queries and keys, 0.1 log s + 1 (its equation 22); otherwise 1."""
    if cfg.rotary_scaling != "yarn":
        return 1.0
    return cfg.rotary_strength or 0.1 * math.log(cfg.rotary_factor) + 1


def rotate(cfg: FrozenConfigDict, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Applies rotary position embedding (Su 2021, 3.4.2) to x [B, T, N, H] at positions [B, T].

    Rotates dimensions (i, i + H / 2); with rotary_interleaved (2 i, 2 i + 1), as in the paper.
    """
    if 0 < cfg.rotary_dim < x.shape[-1] and cfg.attention != "latent":
        turned, left = jnp.split(x, [cfg.rotary_dim], axis=-1)
        return jnp.concatenate([rotate(cfg, turned, positions), left], axis=-1)
    angles = positions[..., None, None] * rotary_rates(cfg, x.shape[-1])
    strength = rotary_strength(cfg)
    sin, cos = strength * jnp.sin(angles), strength * jnp.cos(angles)
    y = x.astype(jnp.float32)
    if cfg.rotary_interleaved:
        a, b, join = y[..., ::2], y[..., 1::2], lambda *x: jnp.stack(x, -1).reshape(y.shape)
    else:
        a, b, join = *jnp.split(y, 2, axis=-1), lambda *x: jnp.concatenate(x, axis=-1)
    return join(a * cos - b * sin, b * cos + a * sin).astype(x.dtype)


class RelativeBias(nn.Module):
    """T5's relative position bias in buckets, for length L (Raffel 2020, 2.1).

    Half of the buckets are for exact distances, the others grow logarithmically up to
    relative_max_distance; a bidirectional stack uses half of the buckets for each direction.
    """

    cfg: FrozenConfigDict
    bidirectional: bool

    @nn.compact
    def __call__(self, L: int) -> Bias:
        cfg = self.cfg
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(normal(cfg, cfg.embed_dim), ("buckets", "heads")),
            (cfg.relative_buckets, cfg.num_heads),
        )
        return Bias(jnp.take(table, self.bucket(jnp.arange(1 - L, L)), axis=0).T)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """Maps distances (key position - query position), of any shape, to bucket indices."""
        buckets, start = self.cfg.relative_buckets, 0
        if self.bidirectional:
            buckets //= 2
            start = jnp.where(distance > 0, buckets, 0)
            distance = jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        exact = buckets // 2
        ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(
            self.cfg.relative_max_distance / exact
        )
        far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
        return start + jnp.where(distance < exact, distance, far)


def alibi(num_heads: int, L: int) -> Bias:
    """ALiBi's bias -slope |distance| for length L (Press 2022, section 3)."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    # Between powers of two, the paper's code uses every other slope of the next power of two.
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return Bias(-jnp.asarray(slopes)[:, None] * jnp.abs(jnp.arange(1.0 - L, L)))


def position_bias(cfg: FrozenConfigDict, L: int, bidirectional: bool) -> Bias | None:
    """Returns the position bias of a stack's scores, if any; call inside its Linen module."""
    if cfg.positions == "relative":
        return RelativeBias(cfg, bidirectional, name="relative_bias")(L)
    return alibi(cfg.num_heads, L) if cfg.positions == "alibi" else None

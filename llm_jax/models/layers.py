"""Basic layers: dense projections, norms and the feed-forward network.

Parameters are float32 and have logical axis names; activations have dtype `cfg.dtype`.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.models import functions
from llm_jax.models.functions import GATED, PLAIN


def annotate(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation by its logical axes; a no-op without a mesh."""
    return nn.with_logical_constraint(x, axes)


def normal(cfg: FrozenConfigDict, fan_in: int, scale: float = 1.0):
    """Normal initialiser with std initializer_range, or 1 / sqrt(fan_in) if cfg.init='fan_in'."""
    return nn.initializers.normal(
        scale * (cfg.initializer_range if cfg.init == "normal" else fan_in**-0.5)
    )


def residual_scale(cfg: FrozenConfigDict) -> float:
    """1 / sqrt(2 num_layers) if cfg.scale_residual_init (GPT-2 paper, section 2.3), else 1."""
    return (2 * cfg.num_layers) ** -0.5 if cfg.scale_residual_init else 1.0


def both_streams(cfg: FrozenConfigDict) -> bool:
    """Whether a reversible stack concatenates both streams for the output matrix."""
    return cfg.reversible and cfg.head == "lm" and not cfg.tie_embeddings


class Dense(nn.Module):
    """Linear layer over several axes: x [..., *inputs] -> [..., *outputs].

    The kernel has shape inputs + outputs and the logical axes `axes`.
    """

    cfg: FrozenConfigDict
    inputs: Sequence[int]
    outputs: Sequence[int]
    axes: Sequence[str]
    init_scale: float = 1.0
    use_bias: bool | None = None  # None: cfg.use_bias
    bias_start: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, dtype = len(self.inputs), self.cfg.dtype
        init = normal(self.cfg, math.prod(self.inputs), self.init_scale)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, self.axes), (*self.inputs, *self.outputs),
        )
        # Flax's function leaves kernels that qwix quantised unchanged.
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=dtype)
        axes = ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ()))
        y = jax.lax.dot_general(x, kernel, axes).astype(dtype)
        if self.cfg.use_bias if self.use_bias is None else self.use_bias:
            start = nn.initializers.constant(self.bias_start)
            init = nn.with_logical_partitioning(start, self.axes[n:])
            y += self.param("bias", init, tuple(self.outputs)).astype(dtype)
        return y


class Norm(nn.Module):
    """LayerNorm (Ba 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis.

    If norm_zero_centered, the scale is 1 + its parameter.
    """

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, shape = self.cfg, (x.shape[-1],)
        named = lambda init: nn.with_logical_partitioning(init, ("norm",))
        start = nn.initializers.zeros if cfg.norm_zero_centered else nn.initializers.ones
        scale = self.param("scale", named(start), shape)
        scale = scale + 1 if cfg.norm_zero_centered else scale
        if cfg.norm == "rmsnorm":
            return functions.rms_norm(x, scale, cfg.norm_epsilon)
        bias = self.param("bias", named(nn.initializers.zeros), shape) if cfg.use_bias else None
        return functions.layer_norm(x, scale, bias, cfg.norm_epsilon)


class Mlp(nn.Module):
    """Feed-forward network: act(x up) down, or gated, (act(x gate) * (x up)) down (Shazeer 2020).

    x [B, T, D] -> [B, T, D], computed mlp_chunk positions at a time (Kitaev 2020, section 3.1).
    """

    cfg: FrozenConfigDict
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, (B, T, D) = self.cfg.mlp_chunk, x.shape
        if not 0 < size < T:
            return self._positions(x)
        count = -(-T // size)
        x = jnp.pad(x, ((0, 0), (0, count * size - T), (0, 0))).reshape(B, count, size, D)
        one = nn.remat(lambda self, x: self._positions(x), prevent_cse=False)
        each = nn.scan(
            lambda self, _, x: (None, one(self, x)),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        return each(self, None, x)[1].reshape(B, count * size, D)[:, :T]

    def _positions(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        D, F = (cfg.embed_dim,), (cfg.mlp_dim,)
        h = Dense(cfg, D, F, ("embed", "mlp"), name="up")(x)
        if cfg.activation in GATED:
            gate = Dense(cfg, D, F, ("embed", "mlp"), name="gate")(x)
            h = GATED[cfg.activation](gate, h)
        else:
            h = PLAIN[cfg.activation](h)
        h = annotate(h, "batch", "length", "activation_mlp")
        h = nn.Dropout(cfg.mlp_dropout, deterministic=self.deterministic)(h)
        return Dense(cfg, F, D, ("mlp", "embed"), residual_scale(cfg), name="down")(h)

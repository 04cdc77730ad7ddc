"""Activations and norms as plain functions of arrays."""

import jax
import jax.numpy as jnp
from jax import Array

relu = jax.nn.relu
silu = jax.nn.silu


def gelu(x: Array) -> Array:
    """Returns x * Phi(x), Phi the normal distribution function (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """Returns x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GPT-2's GELU."""
    return jax.nn.gelu(x, approximate=True)


def layer_norm(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
    """Returns (x - mean) / sqrt(variance + eps) * scale + bias over the last axis."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(x.dtype)


def rms_norm(x: Array, scale: Array | None, eps: float) -> Array:
    """Returns x / sqrt(mean(x^2) + eps) * scale over the last axis (arXiv 1910.07467)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    return y.astype(x.dtype)

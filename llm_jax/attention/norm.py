"""RMSNorm, which some kinds of attention have inside and most models around them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-5  # of the norms inside attention, as their papers have it


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def rms_norm(x: Array, scale: Array | None, eps: float) -> Array:
    """Returns x / sqrt(mean(x^2) + eps) * scale, last axis (arXiv 1910.07467).

    x [..., D], scale [D] or None; in float32, returned in x's dtype. The backward pass keeps x.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y if scale is None else y * scale).astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False)
def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """Returns (x - mean) / sqrt(variance + eps) * scale + bias, float32, last axis: of each head.

    Over heads [..., N, H] this is what RWKV calls a group norm.
    """
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON) * scale + bias

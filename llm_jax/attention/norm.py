"""Norms, which some kinds of attention have inside and models around them."""

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


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3,))
def layer_norm(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
    """Returns (x - mean) / sqrt(variance + eps) * scale + bias, last axis (arXiv 1607.06450).

    x [..., D], scale and bias [D] or None; in float32, returned in x's dtype. Over heads
    [..., N, H], with scale and bias of that shape, it is what RWKV calls a group norm.
    """
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)

"""RMSNorm and LayerNorm functions, used inside attention variants and by models."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-5  # for norms inside attention, as in their papers


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def rms_norm(x: Array, scale: Array | None, eps: float) -> Array:
    """RMSNorm over the last axis: x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467).

    x [..., D], scale [D] or None. Computed in float32, returned in x's dtype. Only x is saved for
    the backward pass.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y if scale is None else y * scale).astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3,))
def layer_norm(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
    """LayerNorm over the last axis: (x - mean) / sqrt(variance + eps) * scale + bias (1607.06450).

    x [..., D], scale and bias [D] or None. Computed in float32, returned in x's dtype. With heads
    [..., N, H] and scale and bias [N, H], it is RWKV's group norm.
    """
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)

"""Activations and norms as plain functions of arrays, computed in float32, returned in x's dtype.

Each keeps x itself for the backward pass and nothing else of its size. Left to itself, a
compiler keeps several intermediate results or computes them anew inside the matrix product
that consumes them, which costs a CPU a third of a training step. The price: no forward-mode
differentiation (jax.jvp).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

relu = jax.nn.relu


def _elementwise(function: Callable, derivative: Callable) -> Callable:
    """Returns function in float32 with this derivative; only x is kept for the backward pass."""

    def forward(x: Array) -> Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def backward(x: Array, g: Array) -> tuple[Array]:
        return ((g * derivative(x.astype(jnp.float32))).astype(x.dtype),)

    f = jax.custom_vjp(forward)
    f.defvjp(lambda x: (forward(x), x), backward)
    return f


_erf_gelu = _elementwise(
    lambda x: x * (0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))),
    lambda x: (
        0.5 + 0.5 * lax.erf(x * math.sqrt(0.5)) + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    ),
)


def gelu(x: Array) -> Array:
    """Returns x Phi(x), Phi the normal distribution function (arXiv 1606.08415)."""
    return _erf_gelu(x)


def _tanh_gate(x: Array) -> Array:
    # (1 + tanh u) / 2 = logistic(2 u), which is cheaper.
    return lax.logistic(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x))


def _tanh_gelu_derivative(x: Array) -> Array:
    s = _tanh_gate(x)
    # Bounded, as s (1 - s) is 0 far out, and 0 * inf would be NaN.
    slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * jnp.minimum(x * x, 1e6))
    return s + x * s * (1 - s) * slope


_tanh_gelu = _elementwise(lambda x: x * _tanh_gate(x), _tanh_gelu_derivative)


def gelu_tanh(x: Array) -> Array:
    """Returns x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the GELU of GPT-2 and BERT."""
    return _tanh_gelu(x)


def _silu_derivative(x: Array) -> Array:
    s = lax.logistic(x)
    return s + x * s * (1 - s)


_silu = _elementwise(lambda x: x * lax.logistic(x), _silu_derivative)


def silu(x: Array) -> Array:
    """Returns x logistic(x) (arXiv 1606.08415, arXiv 1710.05941)."""
    return _silu(x)


def _norm(centred: bool) -> Callable:
    """Returns (x, scale, bias, eps) -> (x - mean) / rms(x - mean) * scale + bias, last axis."""

    def normalized(x: Array, eps: float) -> tuple[Array, Array]:
        x = x.astype(jnp.float32)
        if centred:
            x = x - x.mean(-1, keepdims=True)
        rate = lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
        return x * rate, rate

    def forward(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
        y, _ = normalized(x, eps)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        return y.astype(x.dtype)

    def backward(eps: float, kept: tuple, g: Array) -> tuple:
        x, scale, bias = kept
        y, rate = normalized(x, eps)
        g = g.astype(jnp.float32)
        rows = tuple(range(x.ndim - 1))
        d_scale = None if scale is None else (g * y).sum(rows).astype(scale.dtype)
        d_bias = None if bias is None else g.sum(rows).astype(bias.dtype)
        g = g if scale is None else g * scale
        d = g - y * (g * y).mean(-1, keepdims=True)
        if centred:
            d = d - g.mean(-1, keepdims=True)
        return (d * rate).astype(x.dtype), d_scale, d_bias

    f = jax.custom_vjp(forward, nondiff_argnums=(3,))
    f.defvjp(lambda x, s, b, eps: (forward(x, s, b, eps), (x, s, b)), backward)
    return f


_layer_norm = _norm(centred=True)
_rms_norm = _norm(centred=False)


def layer_norm(x: Array, scale: Array | None, bias: Array | None, eps: float) -> Array:
    """Returns (x - mean) / sqrt(variance + eps) * scale + bias, last axis (arXiv 1607.06450).

    x [..., D], scale and bias [D] or None.
    """
    return _layer_norm(x, scale, bias, eps)


def rms_norm(x: Array, scale: Array | None, eps: float) -> Array:
    """Returns x / sqrt(mean(x^2) + eps) * scale, last axis (arXiv 1910.07467).

    x [..., D], scale [D] or None.
    """
    return _rms_norm(x, scale, None, eps)

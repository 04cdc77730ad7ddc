"""Activations and norms as plain functions of arrays, computed in float32, returned in x's dtype.

Each is rematerialised: only x is saved for the backward pass. By default, compilers save several
intermediate results, or recompute them inside the matrix product that consumes them, which takes a
third of a training step on a CPU.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from llm_jax.attention.norm import layer_norm, rms_norm

__all__ = ["GATED", "PLAIN", "layer_norm", "plain", "rms_norm"]

relu = jax.nn.relu


def _activation(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    in_float32 = lambda x: f(x.astype(jnp.float32)).astype(x.dtype)
    in_float32.__doc__ = f.__doc__
    return jax.checkpoint(in_float32, prevent_cse=False)


@_activation
def gelu(x: Array) -> Array:
    """GELU: x Phi(x), with the normal distribution function Phi (arXiv 1606.08415)."""
    return x * (0.5 + 0.5 * lax.erf(x * math.sqrt(0.5)))


@_activation
def gelu_tanh(x: Array) -> Array:
    """GELU of GPT-2 and BERT: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    # (1 + tanh u) / 2 = logistic(2 u), which is cheaper. For large |x| it saturates at 0 or 1, and
    # the derivative of x^3 overflows.
    near = jnp.clip(x, -30, 30)
    return x * lax.logistic(2 * math.sqrt(2 / math.pi) * near * (1 + 0.044715 * near * near))


@_activation
def silu(x: Array) -> Array:
    """SiLU: x logistic(x) (arXiv 1606.08415, arXiv 1710.05941)."""
    return x * lax.logistic(x)


@partial(jax.checkpoint, prevent_cse=False)
def clamped_swiglu(gate: Array, up: Array) -> Array:
    """Clamped SwiGLU: (u + 1) g logistic(1.702 g), g = min(gate, 7), u = up clipped to [-7, 7].

    The activation of gpt-oss's experts (2025, https://arxiv.org/abs/2508.10925, section 2.2).
    """
    g = jnp.minimum(gate.astype(jnp.float32), 7)
    return ((jnp.clip(up, -7, 7) + 1) * g * lax.logistic(1.702 * g)).astype(up.dtype)


PLAIN = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "silu": silu, "tanh": jnp.tanh}
GATES = {"geglu": gelu, "geglu_tanh": gelu_tanh, "reglu": relu, "swiglu": silu}
# Functions of (gate, up) (Shazeer 2020, https://arxiv.org/abs/2002.05202).
GATED = {name: lambda gate, up, act=act: act(gate) * up for name, act in GATES.items()}
GATED["clamped_swiglu"] = clamped_swiglu


def plain(activation: str) -> Callable[[Array], Array]:
    """Returns the elementwise function of an activation, or of the gate of a gated one."""
    return (PLAIN | GATES)[activation]

"""Reversible residual layers (Gomez 2017; Kitaev 2020, section 3).

A sublayer f maps two streams (a, b) to (b, a + f(b)); two sublayers are the paper's
y1 = x1 + f(x2), y2 = x2 + g(y1). The backward pass needs the outputs only: it recomputes f(b) and
subtracts it, so that activation memory does not grow with depth.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# (layer parameters, x, context, key, kept) -> (f(x), kept). `kept` holds discrete decisions of f
# (LSH buckets): {} in the forward pass; the backward pass receives those of the forward pass.
SubLayer = Callable[[Any, jax.Array, Any, jax.Array, dict], tuple[jax.Array, dict]]
Streams = tuple[jax.Array, jax.Array]


def run(
    sublayers: Sequence[SubLayer], params: Any, streams: Streams, context: Any, keys: jax.Array
) -> Streams:
    """Runs all layers on two streams [B, T, D]; the gradient recomputes activations.

    Args:
      sublayers: the functions of a layer, in order.
      params: layer parameters, stacked along axis 0.
      streams: the two inputs, in float32 to limit the drift of recomputed values.
      context: a pytree shared by all layers; its floating-point arrays are differentiated too.
      keys: [layers] random keys; a sublayer gets the same key in both passes.
    """
    smooth, fixed = (_only(context, floating) for floating in (True, False))
    return _run(tuple(sublayers), params, streams, smooth, fixed, keys)


def forward(
    sublayers: Sequence[SubLayer], params: Any, streams: Streams, context: Any, keys: jax.Array
) -> tuple[Streams, list[dict]]:
    """Returns the output streams and the `kept` values, stacked by layer along axis 0."""

    def layer(streams, inputs):
        layer_params, key = inputs
        kept = []
        for i, f in enumerate(sublayers):
            a, b = streams
            y, keep = f(layer_params, b, context, jax.random.fold_in(key, i), {})
            streams = b, a + y
            kept.append(keep)
        return streams, kept

    return jax.lax.scan(layer, streams, (params, keys))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(sublayers, params, streams, smooth, fixed, keys):
    return forward(sublayers, params, streams, _join(smooth, fixed), keys)[0]


def _forward(sublayers, params, streams, smooth, fixed, keys):
    streams, kept = forward(sublayers, params, streams, _join(smooth, fixed), keys)
    return streams, (params, streams, smooth, fixed, keys, kept)


def _backward(sublayers, saved, grads):
    params, streams, smooth, fixed, keys, kept = saved

    def layer(carry, inputs):
        streams, grads, d_smooth = carry
        layer_params, key, kept = inputs
        d_params = jax.tree.map(jnp.zeros_like, layer_params)
        for i, f in reversed(list(enumerate(sublayers))):
            b, c = streams
            d_b, d_c = grads
            random = jax.random.fold_in(key, i)
            again = lambda p, x, s: f(p, x, _join(s, fixed), random, kept[i])[0]  # noqa: B023
            y, pull = jax.vjp(again, layer_params, b, smooth)
            d_f = pull(d_c)
            streams, grads = (c - y, b), (d_c, d_b + d_f[1])
            d_params = jax.tree.map(jnp.add, d_params, d_f[0])
            d_smooth = jax.tree.map(jnp.add, d_smooth, d_f[2])
        return (streams, grads, d_smooth), d_params

    carry = streams, grads, jax.tree.map(jnp.zeros_like, smooth)
    (_, grads, d_smooth), d_params = jax.lax.scan(layer, carry, (params, keys, kept), reverse=True)
    return d_params, grads, d_smooth, None, None


_run.defvjp(_forward, _backward)


def _only(tree, floating):
    """Replaces non-floating-point arrays of a tree by None; with floating=False, the others."""
    keep = lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) == floating else None
    return jax.tree.map(keep, tree)


def _join(smooth, fixed):
    """Joins two such trees."""
    is_none = lambda x: x is None
    return jax.tree.map(lambda a, b: b if a is None else a, smooth, fixed, is_leaf=is_none)

"""Pipeline parallelism: layers in stages, a batch in microbatches (GPipe; Huang 2018).

All stages work at once, each on another microbatch: https://arxiv.org/abs/1811.06965, figure 2c.
The stages are an axis of one array, so that the compiler sees a loop in which an array is shifted.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.models.layers import annotate

# (parameters of a layer, random key, x_bTD, context of those rows) -> (x_bTD, what it sows). b is
# the rows of a microbatch.
Layer = Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def stages() -> int:
    """The number of pipeline stages: into how many parts the mesh splits the axis 'layers'."""
    mesh, axis = jax.sharding.get_abstract_mesh(), _axis()
    return mesh.shape[axis] if axis and not mesh.empty else 1


def run(
    layer: Layer, params: Any, keys: jax.Array, x: jax.Array, context: Any, pieces: int
) -> tuple[jax.Array, Any]:
    """Returns x [B, T, D] after all layers, and each layer's mean of what it sows, stacked.

    Args:
      layer: one of them.
      params: of the layers, stacked along axis 0.
      keys: [layers] random keys; each microbatch has its own drawn from them.
      x: input of the first layer.
      context: a pytree of arrays whose axis 0 is that of x.
      pieces: number of microbatches, a multiple of the number of stages; the pipeline bubble, the
        share of time in which a stage waits, is (stages - 1) / (pieces + stages - 1).
    """
    S, axis = stages(), _axis()
    M = pieces // S  # microbatches that a stage's devices keep, before and after
    # [B, ...] -> [S, M, b, ...], strided, so that each is spread over the mesh as the batch is.
    cut = lambda a: a.reshape(S, -1, M, *a.shape[1:]).swapaxes(1, 2)
    # [layers, ...] -> [S, layers / S, ...]
    params, keys = jax.tree.map(lambda p: p.reshape(S, -1, *p.shape[1:]), (params, keys))

    def stage(params, keys, rows, number):
        """The layers of one stage, on microbatch `number`: rows are x_bTD and its context."""
        x_bTD, context = rows

        def step(x_bTD, layer_and_key):
            layer_params, key = layer_and_key
            return layer(layer_params, jax.random.fold_in(key, number), x_bTD, context)

        x_bTD, sown = jax.lax.scan(step, x_bTD, (params, keys))
        valid = (number >= 0) & (number < pieces)  # else the pipeline fills or drains
        return (x_bTD, context), jax.tree.map(lambda s: jnp.where(valid, s, 0), sown)

    work = jax.vmap(stage, spmd_axis_name=axis)
    # [S, 1, ...], without a slice of rows [S, b, ...], which would gather.
    stage_is = lambda i, rows: (jnp.arange(S) == i).reshape(-1, *[1] * (rows.ndim - 1))

    def tick(carry, t):
        waiting, rows = carry  # [S, M, b, ...] and [S, b, ...]
        column = t % M
        next_up = jax.tree.map(lambda w: w[:, column], waiting)
        # The first stage takes what waits there; all others what the one before has done.
        take = lambda r, n: _place(jnp.where(stage_is(0, n), n, jnp.roll(r, 1, axis=0)))
        rows = jax.tree.map(take, rows, next_up)
        rows, sown = work(params, keys, rows, t - jnp.arange(S))
        # Waiting microbatches move up a stage; the output of the last stage takes the freed place.
        leave = lambda n, r: _place(jnp.where(stage_is(S - 1, r), r, jnp.roll(n, -1, axis=0)))
        freed = jax.tree.map(leave, next_up, rows)
        waiting = jax.tree.map(lambda w, f: w.at[:, column].set(f), waiting, freed)
        return (waiting, rows), sown

    with nn.logical_axis_rules(_rules_within(axis)):
        waiting = jax.tree.map(cut, (x, context))
        start = waiting, jax.tree.map(lambda w: _place(w[:, 0]), waiting)
        ticks = jnp.arange(pieces + S - 1)
        ((done, _), _), sown = jax.lax.scan(tick, start, ticks)
    # A microbatch ends in the row that it came from, S - 1 columns on.
    y = jnp.roll(done, 1 - S, axis=1).swapaxes(1, 2).reshape(x.shape)
    mean = lambda s: s.sum(0).reshape(-1, *s.shape[3:]) / pieces
    return annotate(y, "batch", "length", "activation_embed"), jax.tree.map(mean, sown)


def _axis():
    """The mesh axis that 'layers' lies on."""
    return nn.logical_to_mesh_axes(("layers",))[0]


def _rules_within(axis):
    """The rules of a single stage, where the batch is not also split over stages."""
    drop = lambda axes: tuple(a for a in axes if a != axis) if isinstance(axes, tuple) else axes
    return [(name, drop(axes)) for name, axes in nn.get_logical_axis_rules()]


def _place(rows):
    """Rows [stages, b, ...] each on their stage's devices."""
    return annotate(rows, "layers", "batch", *[None] * (rows.ndim - 2))

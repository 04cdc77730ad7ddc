"""Pipeline parallelism over stages of layers and microbatches (GPipe; Huang 2018).

All stages run concurrently on different microbatches: https://arxiv.org/abs/1811.06965, figure 2c.
Stages are an axis of one array: the compiler sees a loop that shifts the array along it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.models.layers import annotate

# (layer parameters, random key, x_bTD, context of its rows) -> (x_bTD, sown values), where b is the
# number of rows of a microbatch.
Layer = Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def stages() -> int:
    """Returns the number of pipeline stages: the size of the mesh axis that splits 'layers'."""
    mesh, axis = jax.sharding.get_abstract_mesh(), _axis()
    return mesh.shape[axis] if axis and not mesh.empty else 1


def run(
    layer: Layer, params: Any, keys: jax.Array, x: jax.Array, context: Any, pieces: int
) -> tuple[jax.Array, Any]:
    """Runs all layers on x [B, T, D]; returns the output and the sown values, stacked by layer.

    Args:
      layer: the function of a single layer.
      params: layer parameters, stacked along axis 0.
      keys: [layers] random keys; each microbatch derives its own from them.
      x: input of the first layer.
      context: a pytree of arrays with the batch axis of x as axis 0.
      pieces: number of microbatches, a multiple of the number of stages. The pipeline bubble, the
        fraction of time a stage idles, is (stages - 1) / (pieces + stages - 1).
    """
    S, axis = stages(), _axis()
    M = pieces // S  # microbatches stored on the devices of a stage, before and after
    # [B, ...] -> [S, M, b, ...], strided, so that each microbatch is sharded like the batch.
    cut = lambda a: a.reshape(S, -1, M, *a.shape[1:]).swapaxes(1, 2)
    # [layers, ...] -> [S, layers / S, ...]
    params, keys = jax.tree.map(lambda p: p.reshape(S, -1, *p.shape[1:]), (params, keys))

    def stage(params, keys, rows, number):
        """Runs the layers of a stage on microbatch `number`: rows are x_bTD and its context."""
        x_bTD, context = rows

        def step(x_bTD, layer_and_key):
            layer_params, key = layer_and_key
            return layer(layer_params, jax.random.fold_in(key, number), x_bTD, context)

        x_bTD, sown = jax.lax.scan(step, x_bTD, (params, keys))
        valid = (number >= 0) & (number < pieces)  # false while the pipeline fills or drains
        return (x_bTD, context), jax.tree.map(lambda s: jnp.where(valid, s, 0), sown)

    work = jax.vmap(stage, spmd_axis_name=axis)
    # [S, 1, ...]; slicing rows [S, b, ...] would cause an all-gather.
    stage_is = lambda i, rows: (jnp.arange(S) == i).reshape(-1, *[1] * (rows.ndim - 1))

    def tick(carry, t):
        waiting, rows = carry  # [S, M, b, ...] and [S, b, ...]
        column = t % M
        next_up = jax.tree.map(lambda w: w[:, column], waiting)
        # The first stage takes a waiting microbatch, the others the output of the previous stage.
        take = lambda r, n: _place(jnp.where(stage_is(0, n), n, jnp.roll(r, 1, axis=0)))
        rows = jax.tree.map(take, rows, next_up)
        rows, sown = work(params, keys, rows, t - jnp.arange(S))
        # Waiting microbatches move up one stage; the last stage's output takes the free slot.
        leave = lambda n, r: _place(jnp.where(stage_is(S - 1, r), r, jnp.roll(n, -1, axis=0)))
        freed = jax.tree.map(leave, next_up, rows)
        waiting = jax.tree.map(lambda w, f: w.at[:, column].set(f), waiting, freed)
        return (waiting, rows), sown

    with nn.logical_axis_rules(_rules_within(axis)):
        waiting = jax.tree.map(cut, (x, context))
        start = waiting, jax.tree.map(lambda w: _place(w[:, 0]), waiting)
        ticks = jnp.arange(pieces + S - 1)
        ((done, _), _), sown = jax.lax.scan(tick, start, ticks)
    # A microbatch ends in its original row, S - 1 columns later.
    y = jnp.roll(done, 1 - S, axis=1).swapaxes(1, 2).reshape(x.shape)
    mean = lambda s: s.sum(0).reshape(-1, *s.shape[3:]) / pieces
    return annotate(y, "batch", "length", "activation_embed"), jax.tree.map(mean, sown)


def _axis():
    """The mesh axis of the logical axis 'layers'."""
    return nn.logical_to_mesh_axes(("layers",))[0]


def _rules_within(axis):
    """Sharding rules inside a stage, where the batch is not also split over stages."""
    drop = lambda axes: tuple(a for a in axes if a != axis) if isinstance(axes, tuple) else axes
    return [(name, drop(axes)) for name, axes in nn.get_logical_axis_rules()]


def _place(rows):
    """Shards rows [stages, b, ...] over the stages' devices."""
    return annotate(rows, "layers", "batch", *[None] * (rows.ndim - 2))

"""Sharding: the device mesh and the rules that map logical axes to mesh axes.

Models use logical axis names; `RULES` maps them to the mesh axes, which are named only here.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError

AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")
BATCH = ("pipeline", "data", "fsdp", "expert")

RULES = (
    ("batch", BATCH),
    ("expert_batch", ("data", "fsdp")),  # arrays sharded with their experts
    ("lookup_batch", ("pipeline", "data", "expert")),  # lookups, sharded by embedding dimension
    ("length", "context"),
    ("layers", "pipeline"),
    # parameters
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("kv", None),
    ("latent", None),
    ("taps", None),
    ("mlp", "tensor"),
    ("experts", "expert"),
    ("norm", None),
    ("positions", None),
    ("buckets", None),
    ("types", None),
    # activations
    ("activation_embed", None),
    ("activation_heads", "tensor"),
    ("activation_kv_heads", "tensor"),
    ("activation_kv", None),
    ("activation_mlp", "tensor"),
)


def make_mesh(sizes: ConfigDict, devices: list | None = None) -> Mesh:
    """Creates the device mesh of config.mesh; one size may be -1, for all remaining devices.

    Raises:
      ConfigError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    resolved = configs.mesh_sizes(sizes, len(devices))
    shape = [resolved[axis] for axis in AXES]
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        laid_out = _hybrid(shape, devices, slices)
    else:  # unlike jax.make_mesh, allows 2 x 32 of 4 x 4 x 4 chips on every kind of TPU
        laid_out = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # Not explicit axis types, JAX's default, which would require annotations throughout Linen code.
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _hybrid(shape: list[int], devices: list, slices: int) -> np.ndarray:
    """Orders the devices of several slices: the first axis that divides spans the slow network."""
    outer = ("data", "pipeline", "fsdp")
    sizes = {axis: shape[AXES.index(axis)] for axis in outer}
    axis = next((axis for axis in outer if sizes[axis] % slices == 0), None)
    if axis is None:
        raise ConfigError(f"{', '.join(f'mesh.{a}={n}' for a, n in sizes.items())}: one of them "
                          f"must be a multiple of the {slices} slices")
    across = AXES.index(axis)
    between = [slices if i == across else 1 for i in range(len(shape))]
    within = [n // m for n, m in zip(shape, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if batch, heads or layers do not divide over the mesh."""
    _check_pipeline(config, mesh)
    parts, stages = batch_shards(mesh), mesh.shape["pipeline"]
    microbatches = config.train.microbatches
    pipelined = 1 if stages == 1 else config.model.pipeline_pieces or stages
    pieces, named = microbatches * pipelined // stages, f"train.microbatches={microbatches}"
    named += f" of model.pipeline_pieces={pipelined}" * (pipelined > 1)
    for key in ("batch_size", "ramp_start") if config.data.ramp_steps else ("batch_size",):
        size = config.data[key]
        if size % (parts * pieces):
            near = size // (parts * pieces) * parts * pieces
            nearest = f"nearest are {near} and" if near else "nearest is"
            raise ConfigError(
                f"data.{key}={size}: must divide over {' x '.join('mesh.' + a for a in BATCH)} = "
                f"{parts} in {named}; the {nearest} {near + parts * pieces}"
            )
    split = {"max_length": "context", "num_experts": "expert", "num_heads": "tensor",
             "num_kv_heads": "tensor", "num_key_heads": "tensor"}  # fmt: skip
    for layer in configs.layers(config.model, max(configs.depths(config.model).values())):
        for key, axis in split.items():
            if layer[key] % mesh.shape[axis]:
                raise ConfigError(f"model.{key}={layer[key]}: must be a multiple of "
                                  f"mesh.{axis}={mesh.shape[axis]}")


def _check_pipeline(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if the model cannot be split into pipeline stages."""
    model, stages = config.model, mesh.shape["pipeline"]
    if stages == 1:
        return
    if model.reversible:
        raise ConfigError(f"mesh.pipeline={stages}: reversible layers do not support it; set 1")
    if model.pipeline_pieces % stages:
        raise ConfigError(f"model.pipeline_pieces={model.pipeline_pieces}: must be a multiple of "
                          f"mesh.pipeline={stages}, or 0")
    for depth in configs.depths(model).values():
        (scan, *others) = configs.scans(model, depth)
        if not others and scan.count % stages == 0:
            continue
        key = "num_layers" if depth == model.num_layers else "num_decoder_layers"
        wanted = f"a multiple of mesh.pipeline={stages}"
        if others or scan.period > 1:
            wanted += ", with layers in a pattern that repeats in every stage"
        raise ConfigError(f"model.{key}={depth}: must be {wanted}")


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of the batch axis."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a [B, ...] array."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(params: dict, mesh: Mesh) -> dict:
    """Returns shardings of parameters from their logical axes (models.abstract_params)."""

    def one(param):
        axes = nn.logical_to_mesh_axes(param.axes, RULES)
        # A size that does not divide (a vocabulary of 65 over 4) is not split.
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, param.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(one, params)


def like_params(tree, params, shardings, mesh: Mesh):
    """Returns shardings of an optimizer state: moments are sharded like their parameters.

    A leaf belongs to the parameter whose path its own path contains, if their shapes are equal;
    all other leaves (counts, factored statistics) are replicated.
    """
    shapes = {name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    where = dict(zip(shapes, jax.tree.leaves(shardings), strict=True))

    def one(path, leaf):
        ends = range(len(path), 0, -1)
        for part in (path[start:end] for end in ends for start in range(end)):
            if shapes.get(name(part)) == leaf.shape:
                return where[name(part)]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def name(path: tuple) -> str:
    """Formats a pytree path as "decoder/stack/layers/block/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rows(mesh: Mesh) -> Callable[[int], np.ndarray]:
    """Returns a function n -> row indices, ascending, of a batch of n on this process's devices.

    With tensor parallelism across processes, several processes hold the same rows.
    """

    def of(n: int) -> np.ndarray:
        where = batch_sharding(mesh).addressable_devices_indices_map((n,)).values()
        return np.unique(np.concatenate([np.arange(n)[index] for index in where]))

    return of


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Creates global arrays from this process's `rows`; the copy is asynchronous."""
    sharding, parts = batch_sharding(mesh), batch_shards(mesh)
    mine = len(rows(mesh)(parts))
    whole = lambda v: (len(v) * parts // mine, *v.shape[1:])
    make = jax.make_array_from_process_local_data
    return {k: make(sharding, v, whole(v)) for k, v in batch.items()}


def activate(mesh: Mesh):
    """Context manager that maps logical axes to this mesh, for tracing and for calls."""
    stack = ExitStack()
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(RULES))
    return stack

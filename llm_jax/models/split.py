"""Attention under shard_map: each device has its rows, queries and heads, and all their keys.

All other layers work per token and are partitioned by the compiler, which would split blocks of
queries inefficiently and cannot split a kernel.
"""

import dataclasses
import math
import operator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.attention import Bias, Mask, Scoring, Variant


def attend(
    variant: Variant, query: jax.Array, key: jax.Array | None, value: jax.Array | None, mask: Mask,
    scoring: Scoring, options: dict[str, Any],
) -> jax.Array:
    """Returns variant.attend(query [B, T, N, H], ...); gathers the keys if sequences are split.

    Variants that are not independent per query and head are left to the compiler. So is dropout,
    unless sequences are split: the compiler's random numbers do not depend on the mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axis = lambda name: nn.logical_to_mesh_axes((name,))[0]
    names = "batch", "length", "activation_heads", "activation_kv_heads"
    batch, length, heads, kv_heads = axes = list(map(axis, names))
    counts = [parts(mesh, axis) for axis in axes]
    independent = "cache" in variant.supports and not variant.state
    independent = independent and not any(isinstance(x, jax.Array) for x in options.values())
    independent = independent and not (scoring.dropout and counts[1] == 1)
    sizes = (*query.shape[:3], key.shape[2]) if independent else ()  # B, T, N, K
    if not independent or max(counts) == 1 or any(map(operator.mod, sizes, counts)):
        return variant.attend(query, key, value, mask, scoring, **options)
    query_BTNH = PartitionSpec(batch, length, heads)
    key_BSKH = PartitionSpec(batch, None, kv_heads)
    present = lambda x, *spec: None if x is None else PartitionSpec(*spec)
    mask_specs = dataclasses.replace(
        mask,
        query_segments=present(mask.query_segments, batch, length),
        key_segments=present(mask.key_segments, batch),
        query_offset=present(mask.query_offset, *[batch] * jnp.ndim(mask.query_offset)),
        key_places=present(mask.key_places, batch),
        prefix=present(mask.prefix, batch),
    )
    scoring_specs = dataclasses.replace(
        scoring,
        bias=None if scoring.bias is None else Bias(PartitionSpec(heads)),
        sinks=present(scoring.sinks, heads),
        dropout_key=present(scoring.dropout_key),
    )
    split = jax.shard_map(
        partial(_part, variant, options, length),
        mesh=mesh,
        in_specs=(query_BTNH, key_BSKH, key_BSKH, mask_specs, scoring_specs),
        out_specs=query_BTNH,
        check_vma=False,
    )
    return split(query, key, value, mask, scoring)


def parts(mesh: jax.sharding.AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Returns the number of shards of an array axis that these mesh axes split."""
    axes = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    return math.prod(mesh.shape[name] for name in axes)


def _part(variant, options, length, query, key, value, mask, scoring):
    """Attention on one device; its queries follow those of the previous devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if scoring.dropout_key is not None:
        scoring = scoring.apart(jax.lax.axis_index(mesh.axis_names))
    if length and mesh.shape[length] > 1 and (mask.causal or scoring.bias is not None):
        start = jax.lax.axis_index(length) * query.shape[1]
        before = 0 if mask.query_offset is None else mask.query_offset
        mask = dataclasses.replace(mask, query_offset=before + start)
    return variant.attend(query, key, value, mask, scoring, **options)

"""Reads and replaces intermediate values of a forward pass by Flax interceptors.

The layers need no hooks for it; `stack` names the collections that a scan stacks by layer.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config as configs
from llm_jax.models.embeddings import TokenEmbed
from llm_jax.models.model import Model, Outputs
from llm_jax.models.stack import Block, Stack


class Trace(NamedTuple):
    """Result of `trace` for a stack of L layers.

    hidden: [L + 1, B, T, D], the input of each layer and the output of the last, before the final
      norm.
    branches: for each layer, the residual branches of its sublayers, ([B, T, D], …), in order.
    """

    outputs: Outputs
    hidden: jax.Array | None
    branches: list[tuple[jax.Array, ...]]


def token_vectors(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    """Token embeddings [B, T] -> [B, T, E], before positions and norm."""
    return model.apply({"params": params}, tokens, method=lambda m, tokens: m.embed(tokens))


def trace(
    model: Model, params: Any, batch: dict, *, vectors: jax.Array | None = None,
    changes: jax.Array | None = None, output: jax.Array | None = None,
) -> Trace:
    """Runs a decoder or encoder and returns its intermediate values.

    Args:
      vectors: [B, T, E], replaces `token_vectors`.
      changes: [L, B, T, D], added to the layers' inputs (activation patching).
      output: [B, T, D], replaces the stack's output, so that the final norm and the heads read any
        layer's hidden state (the logit lens). Intermediate values are not returned then.
    """
    depth, seen = configs.depths(model.cfg)[model.cfg.kind], []

    def intercept(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__":
            if isinstance(module, TokenEmbed) and vectors is not None:
                return vectors
            if isinstance(module, Stack):
                if output is not None:
                    return output
                seen.append(call(*args, **kwargs))
                return seen[-1]
            if isinstance(module, Block) and changes is not None:
                args = (module.perturb("stream", args[0]), *args[1:])
        return call(*args, **kwargs)

    variables, kept = {"params": params}, ["hidden", "intermediates"]
    if changes is not None:
        variables["perturbations"] = _given(model.cfg, depth, changes)
    branch = lambda module, name: isinstance(module, Block) and name == "branch"
    with nn.intercept_methods(intercept):
        outputs, kept = model.apply(variables, batch, mutable=kept, capture_intermediates=branch)
    if output is not None:
        return Trace(outputs, None, [])
    inputs, branches = [None] * depth, [()] * depth
    for scan, name, places in _blocks(model.cfg, depth):
        block = [kept[x][model.cfg.kind]["stack"][scan][name] for x in ("hidden", "intermediates")]
        for turn, i in enumerate(places):
            inputs[i] = block[0]["input"][0][turn]
            branches[i] = tuple(x[turn] for x in block[1]["branch"])
    return Trace(outputs, jnp.stack([*inputs, seen[-1]]), branches)


def _blocks(cfg: Any, depth: int):
    """Yields the scan name, block name and layer numbers of each block of each scan."""
    for scan in configs.scans(cfg, depth):
        for i, name in enumerate(scan.blocks()):
            first = scan.start + i
            yield scan.name, name, range(first, first + scan.period * scan.count, scan.period)


def _given(cfg: Any, depth: int, changes: jax.Array) -> dict:
    tree: dict = {}
    for scan, name, places in _blocks(cfg, depth):
        tree.setdefault(scan, {})[name] = {"stream": changes[jnp.array(places)]}
    return {cfg.kind: {"stack": tree}}

"""A forward pass looked into from outside: parts of it given, changed or kept (Flax interceptors).

No layer knows of it; `stack` names the collections whose arrays a scan stacks by layer.
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
    """What `trace` returns, of an encoder's or a decoder's stack of L layers.

    hidden: [L + 1, B, T, D], each layer's input and the last one's output, before the final norm.
    branches: of each layer what its sub-layers add to the stream, ([B, T, D], …), attention first.
    """

    outputs: Outputs
    hidden: jax.Array | None
    branches: list[tuple[jax.Array, ...]]


def token_vectors(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    """[B, T] -> [B, T, E], what the token table gives, before positions and norm."""
    return model.apply({"params": params}, tokens, method=lambda m, tokens: m.embed(tokens))


def trace(
    model: Model, params: Any, batch: dict, *, vectors: jax.Array | None = None,
    changes: jax.Array | None = None, output: jax.Array | None = None,
) -> Trace:
    """Runs a decoder or encoder.

    Args:
      vectors: [B, T, E], in place of `token_vectors`.
      changes: [L, B, T, D], added to the layers' inputs (activation patching).
      output: [B, T, D], in place of the stack's output: layer L's input there is read through the
        final norm and the heads (the logit lens). Then nothing else is kept.
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
    """Of each block of each scan: both their names, and the layers that it is, in turn."""
    for scan in configs.scans(cfg, depth):
        for i, name in enumerate(scan.blocks()):
            first = scan.start + i
            yield scan.name, name, range(first, first + scan.period * scan.count, scan.period)


def _given(cfg: Any, depth: int, changes: jax.Array) -> dict:
    tree: dict = {}
    for scan, name, places in _blocks(cfg, depth):
        tree.setdefault(scan, {})[name] = {"stream": changes[jnp.array(places)]}
    return {cfg.kind: {"stack": tree}}

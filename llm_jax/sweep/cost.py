"""Cost of an attention layer by length: time and memory of forward and backward pass.

python -m llm_jax.sweep.cost FILE.json '{"model": {resolved config.model}, "lengths": [512]}'
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax import config as configs
from llm_jax import record
from llm_jax.attention import Mask
from llm_jax.models.latent import attention_layer
from llm_jax.models.positions import position_bias

REPEATS = 5
SECONDS = 10.0  # calls that would take longer are skipped
COMPILING = 60.0  # if compiling takes longer, longer lengths are skipped
BYTES = 2**32  # programs with more temporary bytes are compiled but not run


def measure(model: ConfigDict, lengths: list[int]) -> list[dict[str, Any]]:
    """Returns a row per length: the cost of a layer, the mean over alternating variants.

    Each has 'length', 'bytes' and 'seconds'; for None, 'reason' explains it. Lengths that would
    take too long, judging by the previous one, are skipped.
    """
    rows, compiling, running = [], 0.0, 0.0
    layers = len(_kinds(model))
    for length in lengths:
        row = {"length": length, "bytes": None, "seconds": None, "reason": ""}
        rows.append(row)
        if compiling > COMPILING:
            row["reason"] = f"compilation would take more than {COMPILING:.0f} s"
            continue
        began = time.perf_counter()
        try:
            program, inputs = _compiled(model, length)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            row["reason"], compiling = str(error).splitlines()[0][:200], float("inf")
            continue
        compiling = time.perf_counter() - began
        row["bytes"] = program.memory_analysis().temp_size_in_bytes / layers
        if row["bytes"] > BYTES:
            row["reason"] = f"needs more than {BYTES / 2**30:.0f} GiB"
        elif running > SECONDS:
            row["reason"] = f"would take more than {SECONDS:.0f} s"
        else:
            row["seconds"] = _seconds(program, inputs) / layers
            # The next length is twice this one: at most four times the time.
            running = 4 * row["seconds"]
    return rows


def _kinds(model):
    """Returns the layers of a stack's first pattern."""
    (depth, *_) = configs.depths(model).values()
    return configs.layers(model, depth)[: configs.scans(model, depth)[0].period]


class _Layers(nn.Module):
    """The attention layers of a stack's first pattern: x [1, T, D] -> [1, T, D], with biases."""

    cfg: FrozenConfigDict

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        T, causal = x.shape[1], self.cfg.kind == "decoder"
        bias = position_bias(self.cfg, T, bidirectional=not causal)
        for layer in _kinds(self.cfg):
            attend = attention_layer(layer.attention)(layer, layer.attention)
            x = attend(x, Mask(causal=causal), bias=bias, positions=jnp.arange(T)[None])
        return x


def _compiled(model: ConfigDict, length: int) -> tuple[Callable, tuple]:
    """Compiles the gradient of these layers for one sequence; returns it with its inputs."""
    cfg = FrozenConfigDict(model.to_dict() | {"max_length": length})
    layers = _Layers(cfg)

    def loss(params, x):
        y = layers.apply({"params": params}, x)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    x = jax.random.normal(jax.random.key(0), (1, length, cfg.embed_dim), cfg.dtype)
    params = jax.jit(lambda x: nn.unbox(layers.init(jax.random.key(1), x)["params"]))(x)
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile(), (params, x)


def _seconds(program: Callable, inputs: tuple) -> float:
    """Returns the median time of REPEATS calls after a warm-up, fewer if they exceed SECONDS."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        times.append(time.perf_counter() - began)
        if sum(times) > SECONDS:
            break
    return float(np.median(times[1:] or times))


def main(argv: list[str]) -> None:
    """Measures a model and writes the result and the request to a file."""
    asked = json.loads(argv[1])
    rows = measure(ConfigDict(asked["model"]), asked["lengths"])
    record.write(argv[0], asked=asked, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Compression methods of configs and parameters: METHODS, by the name before a colon."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.sharding import name
from llm_jax.train import groups, optimizer

Method = Callable[[ConfigDict, Any, str], tuple[ConfigDict, Any]]


def apply(config: ConfigDict, params: Any, method: str) -> tuple[ConfigDict, Any]:
    """Returns (config, parameters) of a compressed model; method is "int8", "prune:0.5" ….

    Raises:
      ConfigError: an unknown method, an invalid argument, or a model that the method does not
        support or would not change.
    """
    kind, _, argument = method.partition(":")
    if kind not in METHODS:
        raise ConfigError(f"--method={method}: {kind!r} is not one of {', '.join(METHODS)}")
    new, smaller = METHODS[kind](ConfigDict(config.to_dict()), params, argument)
    if new.model == config.model and jax.tree.all(jax.tree.map(np.array_equal, smaller, params)):
        raise ConfigError(f"--method={method}: changes no parameter of this model")
    return new, smaller


def quantize(kind: str) -> Method:
    """Post-training quantisation of weights to int8, int4 or nf4 (model.weights), to nearest."""

    def method(config, params, argument):
        if argument:
            raise ConfigError(f"--method={kind}:{argument}: takes no argument")
        config.model.weights = kind
        return config, params

    return method


def prune(config: ConfigDict, params: Any, argument: str) -> tuple[ConfigDict, Any]:
    """Magnitude pruning of each layer's matrices: a fraction of the entries, or N:M sparsity.

    0.5: zeroes the smaller half of a matrix's entries (Han 2015, arXiv:1506.02626). 2:4: keeps the
    2 largest of every 4 consecutive inputs of each output (Mishra 2021, arXiv:2104.08378). Training
    preserves zeros by optimizer.keep_zeros.
    """
    if ":" in argument:
        n, m = (int(x) if x.isdecimal() else 0 for x in argument.split(":", 1))
        if not 0 < n < m:
            raise ConfigError(f"--method=prune:{argument}: must be like 2:4")
        smallest = lambda x: _smallest_of(x, n, m)
    else:
        share = _share("prune", argument)
        smallest = lambda x: np.argsort(np.argsort(x.reshape(-1))) < share * x.size

    def pruned(group, x):
        shape = optimizer.matrix(group, x.shape)
        each = np.abs(np.asarray(x)).reshape(-1, *shape[-2:])
        mask = np.stack([smallest(one).reshape(one.shape) for one in each])
        return jnp.where(mask.reshape(x.shape), 0, x)

    config.optimizer.keep_zeros = True
    return config, _each_matrix(config, params, pruned)


def _smallest_of(x: np.ndarray, n: int, m: int) -> np.ndarray:
    """Returns [inputs, outputs]: whether an entry is not among the n largest of its m inputs."""
    whole = len(x) // m * m  # an incomplete last group is not pruned
    parts = x[:whole].reshape(-1, m, x.shape[1])
    mask = np.zeros(x.shape, bool)
    mask[:whole] = (np.argsort(np.argsort(parts, 1), 1) < m - n).reshape(whole, x.shape[1])
    return mask


def heads(config: ConfigDict, params: Any, argument: str) -> tuple[ConfigDict, Any]:
    """Head pruning: zeroes a fraction of each layer's attention heads; shapes do not change.

    Selects heads with the smallest norm of the output projection (Michel 2019, arXiv:1905.10650,
    with magnitude as importance).
    """
    share = _share("heads", argument)
    m, shapes, wanted = config.model, models.abstract_params(config.model), {}
    flat = {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    own = ("heads", "kv_heads")[: 1 + (m.num_kv_heads == m.num_heads)]  # axes that index heads
    for path, p in jax.tree_util.tree_leaves_with_path(shapes):
        room, _, last = name(path).rpartition("/out/")
        if last == "kernel" and "heads" in p.axes:
            wanted[room] = p.axes.index("heads")
    if not wanted:
        raise ConfigError(f"--method=heads: model.attention={m.attention!r} has no output "
                          "projection per head")

    def pruned(path, p, x):
        room = next((room for room in wanted if name(path).startswith(f"{room}/")), None)
        axis = next((i for i, a in enumerate(p.axes) if a in own), None)
        if room is None or axis is None or not name(path).endswith("/kernel"):
            return x
        out, at = flat[f"{room}/out/kernel"], wanted[room]  # layers come before that axis
        size = np.square(np.asarray(out)).sum(tuple(range(at + 1, out.ndim)))
        gone = np.argsort(np.argsort(size, -1), -1) < int(share * size.shape[-1])
        gone = gone.reshape(*gone.shape[:-1], *[1] * (axis - at), -1, *[1] * (x.ndim - axis - 1))
        return jnp.where(gone, 0, x)

    config.optimizer.keep_zeros = True
    return config, jax.tree_util.tree_map_with_path(pruned, shapes, params)


def low_rank(config: ConfigDict, params: Any, argument: str) -> tuple[ConfigDict, Any]:
    """Low-rank factorisation: kernels W become A B of rank r, the truncated SVD (Eckart 1936).

    W = U S V, A = U sqrt(S), B = sqrt(S) V of the r largest singular values. They are stored as the
    LoRA matrices of kernels of zeros, which remain so in training.
    """
    m, rank = config.model, int(argument) if argument.isdecimal() else 0
    m.lora_rank, m.lora_alpha, m.lora_targets = max(rank, 1), float(max(rank, 1)), ()
    config.optimizer.keep_zeros = False
    configs.check(config)

    def factored(like, tree):
        out = {k: factored(like[k], x) if isinstance(x, dict) else x for k, x in tree.items()}
        for k in [k.removesuffix("_lora_a") for k in like if k.endswith("_lora_a")]:
            x, a = np.asarray(tree[k]), like[f"{k}_lora_a"].shape
            u, s, v = np.linalg.svd(x.reshape(*a[:-1], -1), full_matrices=False)
            if not 0 < rank <= s.shape[-1]:
                raise ConfigError(f"--method=low_rank:{argument}: must be 1 to {s.shape[-1]}, the "
                                  f"largest rank of a {k} of {a[-2]} inputs")
            root = np.sqrt(s[..., :rank])
            out |= {k: np.zeros_like(x), f"{k}_lora_a": u[..., :rank] * root[..., None, :],
                    f"{k}_lora_b": root[..., None] * v[..., :rank, :]}
        return out

    return config, factored(models.abstract_params(m), params)


def layers(config: ConfigDict, params: Any, argument: str) -> tuple[ConfigDict, Any]:
    """Keeps every k-th layer of each stack: a student for distillation."""
    m, k = config.model, int(argument) if argument.isdecimal() else 0
    if not 2 <= k <= min(configs.depths(m).values()):
        raise ConfigError(f"--method=layers:{argument}: must be 2 to model.num_layers="
                          f"{m.num_layers}; every layer with a multiple of this number is kept")
    for depth in configs.depths(m).values():
        scans = configs.scans(m, depth)
        if m.share_layers or len(scans) > 1 or scans[0].period > 1:
            raise ConfigError(f"--method=layers:{argument}: needs identical layers that are not "
                              f"shared; model.attention={m.attention!r}, model.layers="
                              f"{m.layers!r}, model.share_layers={m.share_layers}")

    def kept(path, p, x):
        return x[len(x) % k + k - 1 :: k] if "layers" in p.axes else x

    params = jax.tree_util.tree_map_with_path(kept, models.abstract_params(m), params)
    m.num_layers, m.num_decoder_layers = m.num_layers // k, m.num_decoder_layers // k
    return config, params


def _each_matrix(config: ConfigDict, params: Any, change: Callable) -> Any:
    """Applies change(group, x) to each matrix of the layers of stacks."""
    found = groups.of(config, models.abstract_params(config.model))

    def one(path, x):
        group = found[name(path)]
        inside = "/stack/" in f"/{name(path)}" and len(group.spaces) > 1
        return change(group, x) if inside else x

    return jax.tree_util.tree_map_with_path(one, params)


def _share(kind: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"--method={kind}:{text}: must be a fraction above 0 and below 1, as in "
                          f"{kind}:0.5")
    return share


METHODS: dict[str, Method] = {
    "int8": quantize("int8"), "int4": quantize("int4"), "nf4": quantize("nf4"), "prune": prune,
    "heads": heads, "layers": layers, "low_rank": low_rank,
}  # fmt: skip

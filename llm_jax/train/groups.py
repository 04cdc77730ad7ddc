"""Parameter groups: weight decay mask, learning rate factors and optimizer of each parameter.

Groups depend on logical axes, not on paths: stacked layers are separate parameters, heads and
head dimensions form one space, and a parameter that maps one space to another is a matrix. Factors
are set by regular expressions on whole paths; the first match counts, as in big_vision's optax
wrapper (Beyer 2022).
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.sharding import name

STACKED = ("layers", "experts", "taps")  # axes that stack separate parameters
HEADS = ("heads", "kv_heads")
ADAPTERS = ".*_lora_[ab]"  # paths of LoRA matrices
QUANTIZED = ".*/array/(qvalue|scale)"  # paths of quantised kernels (QLoRA), which are frozen


class Group(NamedTuple):
    """Optimizer settings of a parameter.

    Attributes:
      stacked: number of leading axes that stack separate parameters.
      spaces: the axes of each space that it maps between, inputs first; a vector has one space.
      matrix: whether weight decay applies; true for matrices and embeddings.
      optimizer: "adamw" …, see optimizer.direction.
      rate: learning rate factor; 0: frozen.
      decay: factor on weight decay and L1.
      distance: depth from the top: 0 for heads, 1 for the last layer, …, highest for embeddings;
        a tuple for stacked layers.
    """

    stacked: int
    spaces: tuple[tuple[int, ...], ...]
    matrix: bool
    optimizer: str
    rate: float
    decay: float
    distance: int | tuple[int, ...]


def of(config: ConfigDict, params: Any) -> dict[str, Group]:
    """Returns {path: Group} for a tree of models.Param."""
    o = config.optimizer
    shapes = {name(path): p for path, p in jax.tree_util.tree_leaves_with_path(params)}
    leaves = {path: p.axes for path, p in shapes.items()}
    distances = _distances(config.model, shapes)
    rates, decays = _rates(config, leaves), first(config, "decay_factors", leaves, 1.0)
    groups = {}
    for path, axes in leaves.items():
        stacked = sum(axis in STACKED for axis in axes)
        spaces = _spaces(axes, stacked)
        # The kernel of a Dense layer is a matrix even if its output is a scalar, without an axis.
        matrix = len(spaces) > 1 or path.endswith("/kernel")
        muon = len(spaces) > 1 and any(room.startswith("layers") for room in path.split("/"))
        optimizer = "adamw" if o.name == "muon" and not muon else o.name
        decay = decays[path] if matrix else 0.0
        groups[path] = Group(stacked, spaces, matrix, optimizer, rates[path], decay,
                             distances[path])  # fmt: skip
    return groups


def _distances(m: ConfigDict, params: dict[str, Any]) -> dict[str, int | tuple[int, ...]]:
    """Returns Group.distance of each path; a shared layer (ALBERT) counts as the last."""
    found = {}
    for path, p in params.items():
        layers = configs.numbers(m, path)
        found[path] = int(layers is not None)
        if layers is not None and "layers" in p.axes:
            depth = configs.depths(m)["encoder" if "encoder/" in path else "decoder"]
            found[path] = tuple(depth - number for number in layers)
    first = max(max(x) if isinstance(x, tuple) else x for x in found.values()) + 1
    embedding = lambda path: not {"embed", "embeddings"}.isdisjoint(path.split("/"))
    return {path: first if embedding(path) else x for path, x in found.items()}


def _spaces(axes: tuple[str | None, ...], stacked: int) -> tuple[tuple[int, ...], ...]:
    """Axes of each space: ("layers", "heads", "kv", "embed") -> ((1, 2), (3,))."""
    spaces = []
    for i in range(stacked, len(axes)):
        if axes[i] == "kv" and axes[i - 1] in HEADS:
            spaces[-1] += (i,)
        else:
            spaces.append((i,))
    return tuple(spaces)


def first(config: ConfigDict, key: str, paths: Iterable[str], default: float) -> dict[str, float]:
    """Returns {path: value of the first matching pattern in config.optimizer[key]}."""
    pairs = config.optimizer[key]
    for pattern, _ in pairs:
        if not any(re.fullmatch(pattern, path) for path in paths):
            inner = (path.rpartition("/") for path in paths)
            parts = dict.fromkeys(f"{parent}/.*" if parent else name for parent, _, name in inner)
            raise ConfigError(f"optimizer.{key}: no parameter path matches {pattern!r}; the paths "
                              f"are: {', '.join(parts)}")
    return {
        path: next((value for pattern, value in pairs if re.fullmatch(pattern, path)), default)
        for path in paths
    }


def _rates(config: ConfigDict, paths: Iterable[str]) -> dict[str, float]:
    m = config.model
    if m.lora_rank and not config.optimizer.rate_factors:
        rates = {path: float(re.fullmatch(ADAPTERS, path) is not None) for path in paths}
        key = f"model.lora_targets={m.lora_targets}: matches no projection of this model"
        key += f" (model.num_experts={m.num_experts}: experts have none)" * bool(m.num_experts)
    else:
        rates = first(config, "rate_factors", paths, 1.0)
        key = "optimizer.rate_factors"
    rates |= {path: 0.0 for path in paths if re.fullmatch(QUANTIZED, path)}
    if not any(rates.values()):
        raise ConfigError(f"{key}: every parameter is frozen; nothing would be trained")
    return rates


def split(config: ConfigDict, params: Any) -> tuple[Any, Any]:
    """Splits params into (trained, frozen) trees, with None for the leaves of the other."""
    flat = {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    rates = _rates(config, flat)
    pick = lambda trained: jax.tree_util.tree_map_with_path(
        lambda path, x: x if (rates[name(path)] > 0) == trained else None, params
    )
    return pick(True), pick(False)


def join(trained: Any, frozen: Any) -> Any:
    """Joins the two trees of `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
    )

"""Search over meshes, microbatches and remat policies: pruned by estimates, compiled, ranked."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import objectives
from llm_jax.config import ConfigError
from llm_jax.console import counted
from llm_jax.models.flops import count_params
from llm_jax.pod import chips, plan
from llm_jax.sharding import hardware
from llm_jax.sharding.hardware import Chip
from llm_jax.train.run import recomputed_flops_per_token

KEYS = ("mesh.data", "mesh.fsdp", "mesh.tensor", "train.microbatches", "model.remat")
TENSOR, MICROBATCHES, REMAT = (1, 2, 4, 8), (1, 2, 4, 8), ("none", "dots", "full")


def search(
    config: ConfigDict, topology: str, slices: int, compiles: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compiles the `compiles` most promising settings; returns plans that fit, fastest first."""
    devices = chips.devices(topology, slices)
    chip = hardware.chip(devices[0])
    if chip is None or not chip.hbm:
        raise ConfigError(f"--search: the rates of {topology} are unknown; name a TPU or GPU")
    if compiles < 1:
        raise ConfigError(f"--compiles={compiles}: must be at least 1")
    settings = list(candidates(config, len(devices)))
    if not settings:
        raise ConfigError(f"--search: data.batch_size={config.data.batch_size} and model.num_heads="
                          f"{config.model.num_heads} do not divide over {len(devices)} devices")
    weights = count_params(plan.prepare(_changed(config, settings[0]), devices).config.model)
    estimates = [estimate(config, setting, weights, chip) for setting in settings]
    likely = sorted((e for e in estimates if e["bytes"] <= chip.hbm), key=lambda e: e["seconds"])
    if not likely:
        least = min(estimates, key=lambda e: e["bytes"])
        keys = " ".join(f"{key}={value}" for key, value in least["setting"].items())
        tell(f"{counted(len(settings), 'settings')}, none of which fits: {keys} needs at least "
             f"{least['bytes'] / 1e9:.1f} GB of a chip's {chip.hbm / 1e9:.1f}; try more chips, or "
             "a smaller batch")
        return {"settings": len(settings), "ranked": [], "compiled": 0, "failed": True}
    tell(f"{counted(len(settings), 'settings')}, {len(likely)} of them may fit; compiling up to "
         f"{compiles}")
    plans = []
    for i, setting in enumerate(e["setting"] for e in likely[:compiles]):
        result = {"topology": topology, "slices": slices, "setting": setting}
        result |= plan.figures(plan.prepare(_changed(config, setting), devices))
        plans.append(result)
        tell(f"{i + 1}/{min(compiles, len(likely))} {line(result)}")
    fitting = sorted((p for p in plans if p["fits"]), key=lambda p: p["predicted_step_seconds"])
    return {"settings": len(settings), "ranked": fitting, "compiled": len(plans)} | (
        {} if fitting else {"failed": True}
    )


def _changed(config: ConfigDict, setting: dict[str, Any]) -> ConfigDict:
    changed = ConfigDict(config.to_dict())
    configs.change(changed, [f"{k}={value}" for k, value in setting.items()], by_hand=False)
    return changed


def line(result: dict[str, Any]) -> str:
    """Formats the figures of a compiled setting as a line."""
    keys = " ".join(f"{key}={value}" for key, value in result["setting"].items())
    if not result["fits"]:
        return f"{keys}: does not fit"
    seconds, left = result["predicted_step_seconds"], result["left_bytes"]
    return (f"{keys}: at least {1000 * seconds:,.1f} ms by {result['bound_by']}, MFU at most "
            f"{result['predicted_mfu']:.1%}, {left / 1e9:.1f} GB left")


def candidates(config: ConfigDict, count: int) -> Iterator[dict[str, Any]]:
    """Yields settings of KEYS that divide devices, heads and batch."""
    m, batch = config.model, config.data.batch_size
    count //= config.mesh.pipeline * config.mesh.context * config.mesh.expert
    for tensor, parts, remat in itertools.product(TENSOR, MICROBATCHES, REMAT):
        if count % tensor or m.num_heads % tensor or (m.num_kv_heads or m.num_heads) % tensor:
            continue
        if batch % (count // tensor * parts) or (m.reversible and remat != "none"):
            continue
        split = count // tensor
        for fsdp in (n for n in range(1, split + 1) if split % n == 0):
            yield dict(zip(KEYS, (split // fsdp, fsdp, tensor, parts, remat), strict=True))


def estimate(config: ConfigDict, setting: dict, weights: int, chip: Chip) -> dict[str, Any]:
    """Estimates lower bounds of bytes and seconds of a setting, to choose what to compile.

    Bytes: parameters, two moments and a gradient in float32, and activations saved under remat.
    Seconds: the maximum of compute and network; fsdp gathers weights twice and reduces gradients
    once per microbatch, tensor reduces activations four times per layer.
    """
    data, fsdp, tensor, parts, remat = setting.values()
    changed = ConfigDict(config.to_dict())
    changed.model = m = configs.resolve(config.model, 0)
    m.remat = remat
    todo = plan.work(changed)
    # Tokens times layers per device; models with a single stack have equal depths here.
    lengths = objectives.get(config.objective.name).examples.lengths(changed)
    passes = m.num_layers * lengths.get("encoder_tokens", 0)
    passes += m.num_decoder_layers * lengths["tokens"]
    passes *= config.data.batch_size / (data * fsdp)
    width = 2 if m.dtype == "bfloat16" else 4
    products = 4 * m.embed_dim + (m.num_heads + 2 * m.num_kv_heads) * m.head_dim + 2 * m.mlp_dim
    kept = {"full": m.embed_dim, "dots": products / tensor, "none": 1.5 * products / tensor}[remat]
    state = 16 * weights / (fsdp * tensor)
    spread = lambda n: (n - 1) / n
    gathered = 3 * width * weights / tensor * spread(fsdp) * parts
    gathered += 2 * 4 * weights / (fsdp * tensor) * spread(data)
    summed = 2 * 4 * passes * m.embed_dim * width * spread(tensor)
    compute = todo["flops"] + todo["tokens"] * recomputed_flops_per_token(changed)
    compute /= data * fsdp * tensor * chip.flops
    return {
        "setting": setting,
        "bytes": state + passes / parts * kept * width,
        # The sum breaks ties between settings with the same bound.
        "seconds": max(compute, (gathered + summed) / chip.ici_rate)
        + 1e-3 * math.log(1 + gathered + summed),
    }

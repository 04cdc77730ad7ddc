"""The design of a sweep: every config checked and every model counted before any of it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import objectives, record, sharding
from llm_jax.config import ConfigError
from llm_jax.data import pipeline
from llm_jax.files import read_json, write_json
from llm_jax.models.flops import count_params
from llm_jax.sweep.spec import Sweep, read_by
from llm_jax.train.run import Setup, flops_per_token

STEP = 8  # model.mlp_dim is solved in multiples of this
TOLERANCE = 0.01
MEASURES: dict[str, Callable[[ConfigDict], float]] = {
    "params": lambda config: count_params(config.model), "flops": flops_per_token,
}


def make(sweep: Sweep, spec: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the design as JSON: the sweep's fields, and of each variant config and size.

    Args:
      spec: of the base config, as --config takes it.
      overrides: 'key=value' that all variants share.
    """
    if any(text.startswith("seed=") for text in overrides):
        raise ConfigError("--config.seed: --seeds=N trains every variant with seeds 0 to N - 1")
    variants, sizes = sweep.variants(), {}
    resolved = {}
    for label, keys in variants.items():
        try:
            own = [f"{key}={value}" for key, value in keys.items()]
            read = read_by(configs.load(spec, [*overrides, *own], by_hand=False), overrides)
            resolved[label] = _resolved(configs.load(spec, [*read, *own]), sizes)
        except ValueError as error:  # ConfigError is one
            raise ConfigError(f"variant {label!r}: {error}") from error
    for text in overrides:
        if all(reasons := [configs.unread(c, text.partition("=")[0]) for c in resolved.values()]):
            raise ConfigError(reasons[0])
    baseline = next(iter(variants))
    for label, keys in variants.items():
        if sweep.match != "none" and "model.mlp_dim" in keys:
            raise ConfigError(f"variant {label!r}, model.mlp_dim: --match={sweep.match} solves it")
    dims = match(resolved, baseline, sweep.match)
    for label, dim in dims.items():
        resolved[label].model.mlp_dim = variants[label]["model.mlp_dim"] = dim
    return {
        "spec": spec,
        "overrides": overrides,
        "seeds": sweep.seeds,
        "match": sweep.match,
        "baseline": baseline,
        "lengths": list(sweep.lengths),
        "reaches": list(sweep.reaches),
        "variants": {
            label: {
                "keys": variants[label],
                "config": config.to_dict(),
                "parameters": count_params(config.model),
                "flops_per_token": flops_per_token(config),
            }
            for label, config in resolved.items()
        },
    }


def _resolved(config: ConfigDict, sizes: dict[str, tuple]) -> ConfigDict:
    """The config with its sizes filled in, checked as training checks it.

    sizes: tokenizer and labels of data that are known, since most variants have the same.
    """
    parts = [config[name].to_dict() for name in ("data", "tokenizer", "objective")]
    key = json.dumps(parts)
    objective = objectives.get(config.objective.name)
    if key not in sizes:
        splits = objective.splits(config)
        if not len(splits["validation"]):
            raise ConfigError(f"data.validation_fraction={config.data.validation_fraction}: "
                              "variants are compared by their validation loss; hold out a share, "
                              "or set data.validation")
        tokenizer = objective.build_tokenizer(config, splits["train"])
        sizes[key] = tokenizer, config.data.labels
    tokenizer, config.data.labels = sizes[key]
    objective.resolve(config, [])
    pipeline.check_vocab(config, tokenizer)
    config.model = configs.resolve(config.model, tokenizer.vocab_size)
    Setup(config, sharding.make_mesh(configs.base().mesh, jax.devices()[:1])).abstract_state()
    return config


def match(variants: dict[str, ConfigDict], baseline: str, measure: str) -> dict[str, int]:
    """Returns {label: model.mlp_dim} of the variants that need another to match the baseline.

    Parameters and FLOPs are linear in mlp_dim, so two evaluations by shapes give the line.
    """
    if measure == "none":
        return {}
    target = MEASURES[measure](variants[baseline])
    dims = {}
    for label, config in variants.items():
        if label == baseline:
            continue
        own, at = config.model.mlp_dim, lambda dim, c=config: MEASURES[measure](_with_dim(c, dim))
        low, high = at(STEP), at(2 * STEP)
        exact = STEP + (target - low) * STEP / (high - low)
        below = max(STEP, int(exact // STEP) * STEP)
        # Its own size first: what matches already stays as it is.
        dim = min((own, below, below + STEP), key=lambda d, x=exact: abs(d - x))
        if abs(at(dim) / target - 1) > TOLERANCE:
            raise ConfigError(f"variant {label!r}: with model.mlp_dim={dim}, the nearest multiple "
                              f"of {STEP}, it has {at(dim):,.0f} {measure} where {baseline!r} has "
                              f"{target:,.0f}: not within {TOLERANCE:.0%}; use --match=none")
        if dim != own:
            dims[label] = dim
    return dims


def _with_dim(config: ConfigDict, dim: int) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    other.model.mlp_dim = dim
    return other


def commit(design: dict, workdir: Path) -> dict:
    """Writes sweep.json, with the provenance of its first start; returns its content.

    More seeds or variants may be added to a sweep; what it has stays as it was begun.
    """
    file = workdir / "sweep.json"
    design = json.loads(json.dumps(design))
    old = read_json(file) if file.exists() else {}
    if different := _differences(old, design) if old else []:
        raise ConfigError(f"--workdir={workdir} holds another sweep ({'; '.join(different)}); use "
                          "its values, or another --workdir")
    provenance = {"begun": old.get("begun") or record.provenance()}
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(file, design | provenance, indent=1)
    return design | provenance


def _differences(old: dict, new: dict) -> list[str]:
    told = lambda key: f"{key}: {old[key]!r} there, {new[key]!r} here"
    lines = [told(key) for key in ("match", "baseline") if old[key] != new[key]]
    lines += [told("seeds")] * (new["seeds"] < old["seeds"])
    for label, variant in old["variants"].items():
        if label not in new["variants"]:
            lines += [f"variant {label!r}: not here"]
            continue
        # Read onto today's defaults: a key that came later has made no difference.
        planned = configs.from_dict(variant["config"])
        here = configs.from_dict(new["variants"][label]["config"])
        different = configs.differences(planned, here, changeable=())
        lines += [f"variant {label!r}, {text}" for text in different]
    return lines

"""The design of a sweep: validates all configs and counts all models before any run."""

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
from llm_jax.hub import runs as starts
from llm_jax.models.flops import count_params
from llm_jax.sweep.spec import Sweep, read_by
from llm_jax.train.folder import Start
from llm_jax.train.run import Setup, flops_per_token

STEP = 8  # model.mlp_dim is a multiple of it, or of 1 for very small models
TOLERANCE = 0.01
MEASURES: dict[str, Callable[[ConfigDict], float]] = {
    "params": lambda config: count_params(config.model), "flops": flops_per_token,
}


def make(sweep: Sweep, spec: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the design as JSON: the fields of the sweep, and config and size of each variant.

    Args:
      spec: the base config, as for --config.
      overrides: 'key=value' shared by all variants.
    """
    if any(text.startswith("seed=") for text in overrides):
        raise ConfigError("--config.seed: --seeds=N trains every variant with seeds 0 to N - 1")
    variants, sizes, runs, impossible, target = sweep.variants(), {}, {}, {}, None
    for name, labels in variants.items():
        try:
            made = {label: _resolved(spec, overrides, keys, sizes, bool(sweep.tune))
                    for label, keys in labels.items()}  # fmt: skip
            if sweep.match != "none":
                target = target or MEASURES[sweep.match](next(iter(made.values())))
                for label, config in made.items():
                    _match(config, labels[label], sweep.match, target)
        except ValueError as error:  # ConfigError is one
            if not runs or len(variants) == 2:  # the baseline, or the only other variant
                raise ConfigError(f"variant {name!r}: {error}") from error
            impossible[name] = str(error)
            continue
        for label, config in made.items():
            runs[label] = {
                "variant": name,
                "keys": labels[label],
                "config": config.to_dict(),
                "parameters": count_params(config.model),
                "flops_per_token": flops_per_token(config),
            }
    if len({run["variant"] for run in runs.values()}) == 1 < len(variants):
        raise ConfigError("; ".join(f"variant {k!r}: {v}" for k, v in impossible.items()))
    for text in overrides:
        key = text.partition("=")[0]
        reasons = [configs.unread(configs.from_dict(run["config"]), key) for run in runs.values()]
        if all(reasons):
            raise ConfigError(reasons[0])
    return {
        "spec": spec,
        "overrides": overrides,
        "seeds": sweep.seeds,
        "match": sweep.match,
        "baseline": next(iter(variants)),
        "tuned": bool(sweep.tune),
        "without": list(sweep.without),
        "impossible": impossible,
        "lengths": list(sweep.lengths),
        "reaches": list(sweep.reaches),
        "variants": runs,
    }


def _resolved(
    spec: str, overrides: list[str], keys: dict[str, str], sizes: dict[str, Any], tuned: bool
) -> ConfigDict:
    """Returns a variant's config with sizes filled in, validated as in training.

    sizes: cache of tokenizers and labels by data settings, and of the sources of init_from.
    """
    own = [f"{key}={value}" for key, value in keys.items()]
    config, start = _loaded(spec, overrides, own, sizes)
    parts = [config[name].to_dict() for name in ("data", "tokenizer", "objective")]
    key = json.dumps(parts)
    objective = objectives.get(config.objective.name)
    if key not in sizes:
        splits = objective.splits(config)
        for split in ("validation", "test")[: 1 + tuned]:
            if not len(splits[split]):
                raise ConfigError(f"data.{split}_fraction={config.data[f'{split}_fraction']}: "
                                  f"variants are compared by their {split} loss; hold out a "
                                  f"fraction, or set data.{split}")
        tokenizer = start.tokenizer if start else objective.build_tokenizer(config, splits["train"])
        sizes[key] = tokenizer, config.data.labels
    tokenizer, config.data.labels = sizes[key]
    objective.resolve(config, [])
    pipeline.check_vocab(config, tokenizer)
    config.model = configs.resolve(config.model, tokenizer.vocab_size)
    Setup(config, sharding.make_mesh(configs.base().mesh, jax.devices()[:1])).abstract_state()
    return config


def _loaded(
    spec: str, overrides: list[str], own: list[str], sizes: dict[str, Any]
) -> tuple[ConfigDict, Start | None]:
    """Returns a variant's config as `train` completes it, and what init_from gives it."""
    changes = [*overrides, *own]
    begins = [text for text in changes if text.startswith("init_from=")]
    config = configs.load(spec, begins or changes, by_hand=False)
    if not config.init_from:
        return configs.load(spec, [*read_by(config, overrides), *own]), None
    if config.init_from not in sizes:
        sizes[config.init_from] = starts.read(config.init_from)
    return config, starts.begin(config, sizes[config.init_from], changes, recipe=bool(spec))


def _match(config: ConfigDict, keys: dict[str, str], measure: str, target: float) -> None:
    """Sets model.mlp_dim so that a variant matches the parameters or FLOPs of the baseline.

    Both are linear in mlp_dim, so that two evaluations determine the line.
    """
    if "model.mlp_dim" in keys:
        raise ConfigError(f"model.mlp_dim: cannot be set, --match={measure} determines it")
    at = lambda dim: MEASURES[measure](_with_dim(config, dim))
    own, low, high = config.model.mlp_dim, at(STEP), at(2 * STEP)
    exact = STEP + (target - low) * STEP / (high - low)
    step = STEP if high - low <= 2 * TOLERANCE * target else 1
    below = max(step, int(exact // step) * step)
    # Try the current size first: matching variants are not changed.
    dim = min((own, below, below + step), key=lambda dim: abs(dim - exact))
    if abs(at(dim) / target - 1) > TOLERANCE:
        raise ConfigError(f"with model.mlp_dim={dim}, the nearest multiple of {step}, it has "
                          f"{at(dim):,.0f} {measure}, but the baseline has {target:,.0f}: not "
                          f"within {TOLERANCE:.0%}; use --match=none")
    if dim != own:
        if config.init_from:
            raise ConfigError(f"--match={measure}: would need model.mlp_dim={dim}, but init_from="
                              f"{config.init_from!r} has {own}; use --match=none")
        config.model.mlp_dim = keys["model.mlp_dim"] = dim


def _with_dim(config: ConfigDict, dim: int) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    other.model.mlp_dim = dim
    return other


def commit(design: dict, workdir: Path) -> dict:
    """Writes sweep.json, with the provenance of the first start; returns its content.

    Seeds and variants may be added to a sweep, or removed by `without`; existing ones must not
    change.
    """
    file = workdir / "sweep.json"
    design = json.loads(json.dumps(design))
    old = read_json(file) if file.exists() else {}
    if different := _differences(old, design) if old else []:
        raise ConfigError(f"--workdir={workdir} holds a different sweep ({'; '.join(different)}); "
                          "use its values, or another --workdir")
    provenance = {"begun": old.get("begun") or record.provenance()}
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(file, design | provenance, indent=1)
    return design | provenance


def _differences(old: dict, new: dict) -> list[str]:
    told = lambda key: f"{key}: {old[key]!r} there, {new[key]!r} here"
    lines = [told(key) for key in ("match", "baseline") if old[key] != new[key]]
    lines += [told("seeds")] * (new["seeds"] < old["seeds"])
    for label, variant in old["variants"].items():
        if variant.get("variant", label) in new["without"]:
            continue
        if label not in new["variants"]:
            lines += [f"variant {label!r}: not here"]
            continue
        # Missing keys get today's defaults: new keys are not differences.
        planned = configs.from_dict(variant["config"])
        here = configs.from_dict(new["variants"][label]["config"])
        different = configs.differences(planned, here, changeable=())
        lines += [f"variant {label!r}, {text}" for text in different]
    return lines

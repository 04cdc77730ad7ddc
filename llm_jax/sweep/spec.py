"""Definition of a sweep: axes of labelled config changes, whose product gives the variants."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_jax import config as configs
from llm_jax.config import ConfigDict, ConfigError

MATCHES = ("none", "params", "flops")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)


@dataclass(frozen=True)
class Sweep:
    """An ablation sweep: axes whose product gives the variants, seeds, matching, measurements.

    Attributes:
      axes: mappings of label -> {config key: value}; a variant combines one label of each.
      tune: a mapping like an axis. Each variant is trained with all of its labels and seed 0; the
        one with the lowest validation loss is used for further seeds, and evaluated on test.
      seeds: number of seeds; every variant is trained with config.seed = 0, 1, ….
      without: labels of excluded variants.
      match: quantity matched to the baseline by setting model.mlp_dim.
      baseline: label of the baseline; "": the first.
      lengths: lengths at which the cost of an attention layer is measured; (): none.
      reaches: multiples of model.max_length at which the trained models are evaluated.
    """

    axes: Sequence[Mapping[str, Mapping[str, Any]]] = ()
    tune: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    without: Sequence[str] = ()
    match: str = "none"
    baseline: str = ""
    lengths: Sequence[int] = LENGTHS
    reaches: Sequence[int] = (1, 2, 4)

    def crossed(self, axes: Sequence[Mapping]) -> "Sweep":
        """Returns the product with further axes; the first label of each is the baseline's."""
        firsts = [next(iter(axis)) for axis in axes]
        baseline = ", ".join([self.baseline, *firsts]) if self.baseline else ""
        return dataclasses.replace(self, axes=(*self.axes, *axes), baseline=baseline)

    def variants(self) -> dict[str, dict[str, dict[str, str]]]:
        """Returns {variant: {label of a run: {config key: value as text}}}, the baseline first.

        A variant has one label for each entry of `tune` or, without it, only its own.
        """
        self._check()
        variants = {}
        for parts in itertools.product(*(axis.items() for axis in self.axes)):
            name = ", ".join(name for name, _ in parts)
            tuned = [(*parts, choice) for choice in self.tune.items()] or [parts]
            variants[name] = dict(map(_crossed, tuned))
        if unknown := set(self.without) - variants.keys():
            raise ConfigError(f"--without={unknown.pop()}: allowed are "
                              f"{', '.join(map(repr, variants))}")
        variants = {k: v for k, v in variants.items() if k not in self.without}
        first = self.baseline or next(iter(variants), "")
        if first not in variants:
            raise ConfigError(f"--baseline={first}: allowed are {', '.join(map(repr, variants))}")
        labels = [label for variant in variants.values() for label in variant]
        slugs = [slug(label) for label in labels]
        for label, name in zip(labels, slugs, strict=True):
            if not name or slugs.count(name) > 1:
                raise ConfigError(f"variant {label!r}: its folder name {name!r} is not unique; "
                                  "labels must differ in letters and digits")
        return {first: variants[first]} | variants

    def _check(self) -> None:
        if not self.axes or not all(self.axes):
            raise ConfigError("the sweep has nothing to compare: set --axis=KEY=V1,V2, or a "
                              "--config whose file defines get_sweep(variant)")
        if self.seeds < 1:
            raise ConfigError(f"--seeds={self.seeds}: must be at least 1")
        if self.match not in MATCHES:
            raise ConfigError(f"--match={self.match}: allowed are {', '.join(MATCHES)}")


def _crossed(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, dict[str, str]]:
    """Combines one label of each axis: returns the joint label and the changes as text."""
    label = ", ".join(name for name, _ in parts)
    keys = [key for _, changes in parts for key in changes]
    for key in keys:
        if key == "seed" or keys.count(key) > 1:
            why = "is set by --seeds" if key == "seed" else "is set by two axes"
            raise ConfigError(f"variant {label!r}, {key}: {why}")
    return label, {k: as_text(v) for _, changes in parts for k, v in changes.items()}


def read_by(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
    """Returns the shared 'key=value' overrides that this variant reads."""
    return [text for text in overrides if not configs.unread(config, text.partition("=")[0])]


def slug(label: str) -> str:
    """Converts a label to a folder name: 'window 64' to 'window-64'."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")


def as_text(value: Any) -> str:
    """Formats a value as in --config.KEY=VALUE."""
    return value if isinstance(value, str) else repr(value)


def axis(text: str, option: str = "axis") -> dict[str, dict[str, str]]:
    """Parses 'KEY=V1,V2' of --axis or --tune; commas in quotes or brackets belong to a value."""
    key, _, values = text.partition("=")
    parts = re.findall(r"\([^)]*\)|\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^,]+", values)
    if not key or not parts:
        raise ConfigError(f"--{option}={text}: expected --{option}=KEY=V1,V2,…")
    name, values = key.rsplit(".", 1)[-1], [part.strip("\"'") for part in parts]
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ConfigError(f"--{option}={text}: {', '.join(twice)} is given twice")
    return {f"{name} {value}": {key: value} for value in values}


def lengths(text: str) -> tuple[int, ...]:
    """Reads '512,1024', or 'none'."""
    parts = [] if text == "none" else text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--lengths={text}: expected numbers of tokens, as 512,1024, or none")
    return tuple(sorted(map(int, parts)))


def load(spec: str, axes: Sequence[str] = (), **changes: Any) -> Sweep:
    """Returns the sweep of `path.py[:variant]`, crossed with --axis texts, with fields replaced."""
    sweep = configs.from_file(spec, "get_sweep") if spec else None
    if not isinstance(sweep, Sweep | None):
        raise ConfigError(f"--config={spec}: get_sweep must return a llm_jax.sweep.Sweep")
    sweep = (sweep or Sweep()).crossed([axis(text) for text in axes])
    return dataclasses.replace(sweep, **{k: v for k, v in changes.items() if v is not None})

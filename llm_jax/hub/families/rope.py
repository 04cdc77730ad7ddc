"""Rotary positions in config.json, in the formats of transformers 4 and 5."""

import math
from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.family import Key

TYPES = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
FIXED = {
    "rope_parameters.low_freq_factor": (1.0,),
    "rope_parameters.high_freq_factor": (4.0,),
    "rope_parameters.beta_fast": (None, 32),
    "rope_parameters.beta_slow": (None, 1),
    "rope_parameters.partial_rotary_factor": (None, 1.0),
}
KEYS = (
    Key("rope_parameters.rope_theta", "rotary_base"),
    Key("rope_parameters.rope_type", "rotary_scaling", "default", TYPES),
    Key("rope_parameters.factor", "rotary_factor"),
    Key("rope_parameters.original_max_position_embeddings", "rotary_original_length"),
    Key("rope_parameters.truncate", "rotary_truncate", True),
    Key("rope_parameters.attention_factor", "rotary_strength"),
)


def read(hf: dict, names: Collection[str], theta: float = 10_000.0) -> dict:
    """Reads rope_parameters, or rope_scaling and rope_theta, which take precedence."""
    new, old = hf.pop("rope_parameters", None), hf.pop("rope_scaling", None)
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(value, dict | None):
            raise ConfigError(f"config.json: {name}={value!r}: must be an object")
    rope = {"rope_theta": hf.pop("rope_theta", theta)} | (old or new or {})
    kind = rope.setdefault("rope_type", rope.pop("type", "default"))
    for name, value in (new or {}).items():  # transformers 5 prefers the old format
        if rope.get(name, value) != value:
            raise ConfigError(f"config.json: rope_parameters has {name}={value!r}, rope_scaling "
                              f"and rope_theta {name}={rope[name]!r}; remove one of the two")
    if kind in ("llama3", "yarn"):
        length = hf.pop("original_max_position_embeddings", None)
        rope |= {"original_max_position_embeddings": length} if length else {}
        rope.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings", 2048))
    missing = [name for name in NEEDS.get(kind, ()) if rope.get(name) is None]
    if missing:
        raise ConfigError(f"config.json: rope_type={kind!r} needs {', '.join(missing)}")
    if kind in ("default", "linear"):  # other entries are unused
        rope = {k: rope[k] for k in ("rope_theta", "rope_type", *NEEDS.get(kind, ()))} | {
            k: v for k, v in rope.items() if k == "partial_rotary_factor"
        }
    if kind == "yarn":
        strengths = [rope.pop(name, None) for name in ("mscale", "mscale_all_dim")]
        if rope.get("attention_factor") is None and all(strengths):
            above, below = (mscale(rope["factor"], x) for x in strengths)
            rope["attention_factor"] = above / below
    return hf | {f"rope_parameters.{k}": v for k, v in rope.items() if v is not None}


def mscale(factor: float, strength: float) -> float:
    """YaRN's factor on queries and keys: 0.1 strength log(factor) + 1."""
    number = lambda name, x: configs.typed(f"config.json: rope_parameters: {name}", 0.0, x)
    factor, strength = number("factor", factor), number("mscale", strength)
    return 0.1 * strength * math.log(factor) + 1 if factor > 1 else 1.0


def check_width(hf: dict) -> dict:
    """Raises ConfigError for a width that transformers would reject."""
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    if width % heads:
        raise ConfigError(f"model.embed_dim={width}: transformers requires a multiple of "
                          f"model.num_heads={heads} for {hf['model_type']}, for any model.head_dim")
    return hf


def write_llama(hf: dict, model: ConfigDict) -> dict:
    """`write` for models whose number of heads must divide their width in transformers."""
    return write(check_width(hf), model)


def write(hf: dict, model: ConfigDict) -> dict:
    """Writes RoPE in both formats: transformers 4 and many servers read only the old one."""
    hf["initializer_range"] = min(hf["initializer_range"], 1.0)  # transformers' limit
    start = "rope_parameters."
    rope = {k.removeprefix(start): v for k, v in hf.items() if k.startswith(start)}
    base, kind = rope["rope_theta"], rope["rope_type"]
    scaling = {"rope_type": kind} | {k: rope[k] for k in NEEDS.get(kind, ())}
    if kind == "yarn":
        scaling |= {"truncate": rope["truncate"]}
        strength = rope["attention_factor"]
        scaling |= {"attention_factor": strength} if strength else {}
    return {k: v for k, v in hf.items() if not k.startswith(start)} | {
        "rope_parameters": {"rope_theta": base} | scaling,
        "rope_theta": base,
        "rope_scaling": scaling if kind != "default" else None,
    }


def read_by_type(
    hf: dict, names: Collection[str], full: float, entry: str, sliding: float
) -> tuple[dict, str]:
    """Reads the settings of full and sliding attention: config.json, settings of sliding layers.

    full, sliding: default bases; entry: the old name of the second.
    """
    rope = hf.pop("rope_parameters", {})
    parts = [rope.get(name, {}) for name in KINDS] if isinstance(rope, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not set(rope) <= set(KINDS):
        raise ConfigError(f"config.json: rope_parameters={rope!r}: must have objects for "
                          "full_attention and sliding_attention")
    base = parts[1].get("rope_theta", hf.pop(entry, sliding))
    if parts[1].get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope_parameters: sliding_attention={parts[1]!r}: must "
                          "have rope_type 'default'")
    base = configs.typed(f"config.json: rope_parameters, {entry}", 0.0, base)
    local = f" rotary_base={base!r} rotary_scaling=none"
    return read(hf | {"rope_parameters": parts[0]}, names, full), local


def write_by_type(hf: dict, model: ConfigDict, types: list[str]) -> dict:
    """Writes rope_parameters from the first layer of each type."""
    layers = configs.layers(model, model.num_layers)
    of = lambda kind: next((x for x, t in zip(layers, types, strict=True) if t == kind), layers[0])
    full, sliding = (of(kind) for kind in KINDS)
    for key in KEYS:
        hf[key.theirs] = full[key.ours]
    hf["rope_parameters.rope_type"] = BY_SCALING.get(full.rotary_scaling)
    hf = write(hf, model)
    local = {"rope_theta": sliding.rotary_base, "rope_type": "default"}
    return hf | {
        "rope_parameters": {"full_attention": hf["rope_parameters"], "sliding_attention": local}
    }


KINDS = {"full_attention": "dense", "sliding_attention": "local"}
BY_SCALING = {ours: theirs for theirs, ours in TYPES.items()}

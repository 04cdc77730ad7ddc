"""Mamba-2."""

import math
from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families.parts import keys
from llm_jax.hub.family import Family, Key

_SILENT = ("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "chunk_size",
           "residual_in_fp32")  # for initialisation and rounding


def _read(hf: dict, names: Collection[str]) -> dict:
    for name in _SILENT:
        hf.pop(name, None)
    sizes = {"expand": 2, "hidden_size": 4096, "num_heads": 128, "head_dim": 64}
    sizes = {k: configs.typed(f"config.json: {k}", 0, hf.get(k, v)) for k, v in sizes.items()}
    hf.pop("expand", None)
    if sizes["expand"] * sizes["hidden_size"] != sizes["num_heads"] * sizes["head_dim"]:
        text = ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise ConfigError(f"config.json: {text}: expand x hidden_size must be num_heads x head_dim")
    return hf


def _write(hf: dict, model: ConfigDict) -> dict:
    inner, width = model.num_heads * model.value_dim, model.embed_dim
    if inner % width:
        raise ConfigError(f"model.embed_dim={width}: must divide model.num_heads x "
                          f"model.value_dim={inner} for mamba2")
    return hf | {"expand": inner // width}


MAMBA2 = Family(
    name="mamba2",
    model={
        "attention": "mamba2", "feed_forward": False, "norm": "rmsnorm", "positions": "none",
        "use_bias": False,
    },
    keys=(
        *keys(
            vocab_size=32768, max_position_embeddings=8192,  # unused
            hidden_size=4096, num_hidden_layers=64, num_heads=128, layer_norm_epsilon=1e-5,
            initializer_range=0.1, tie_word_embeddings=False,
        ),
        Key("head_dim", "value_dim", 64),
        Key("state_size", "head_dim", 128),
        Key("n_groups", "num_key_heads", 8),
        Key("conv_kernel", "short_conv", 4),
        Key("use_conv_bias", "short_conv_bias", True),
    ),
    fixed={
        "use_bias": (False,), "hidden_act": ("silu",),
        "layer_norm_epsilon": (1e-5,),  # also for the inner norm
        # If it is set, transformers rescales the loaded weights again.
        "rescale_prenorm_residual": (False,),
        "time_step_limit": (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}]),
    },
    prefix="backbone.",
    modules={
        "embed": "backbone.embeddings",
        "decoder/final_norm": "backbone.norm_f",
        "output": "lm_head.weight",
    } | {
        f"decoder/stack/layers/block/{ours}": f"backbone.layers.{{}}.{theirs}"
        for ours, theirs in {
            "attention_norm": "norm",
            "attention/z": "mixer.in_proj",
            "attention/value": "mixer.in_proj",
            "attention/key": "mixer.in_proj",
            "attention/query": "mixer.in_proj",
            "attention/step/kernel": "mixer.in_proj.weight",
            "attention/step/bias": "mixer.dt_bias",
            "attention/value_conv": "mixer.conv1d",
            "attention/key_conv": "mixer.conv1d",
            "attention/query_conv": "mixer.conv1d",
            "attention/log_speed": "mixer.A_log",
            "attention/skip": "mixer.D",
            "attention/norm": "mixer.norm.weight",
            "attention/out": "mixer.out_proj",
        }.items()
    },
    units={"backbone.layers.{}.mixer.conv1d.weight": 1},
    classes={"lm": "Mamba2ForCausalLM"},
    copies={"lm_head.weight": "backbone.embeddings.weight"},
    read=_read,
    write=_write,
)  # fmt: skip

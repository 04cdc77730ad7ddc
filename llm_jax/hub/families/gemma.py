"""Gemma."""

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families import llama, rope
from llm_jax.hub.family import Key


def _read_scale(hf: dict) -> dict:
    """Converts query_pre_attn_scalar to the attention scale; 0: from head_dim."""
    scalar, head_dim = hf.pop("query_pre_attn_scalar", 256), hf.get("head_dim", 256)
    scalar = configs.typed("config.json: query_pre_attn_scalar", 0.0, scalar)
    if scalar <= 0:
        raise ConfigError(f"config.json: query_pre_attn_scalar={scalar}: must be above 0")
    return hf | {"attention_scale": 0.0 if scalar == head_dim else scalar**-0.5}


def _write_scale(hf: dict) -> dict:
    scale = hf.pop("attention_scale")
    return hf | {"query_pre_attn_scalar": round(scale**-2) if scale else hf["head_dim"]}


def _read_gemma2(hf: dict, names: Collection[str]) -> dict:
    types = llama.layer_types(hf, 26, 4096, lambda i: i % 2)
    for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        hf[name] = hf.get(name, default) or 0.0  # null: none
    return rope.read(_read_scale(hf | llama.read_layers(types)), names)


def _write_gemma2(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(rope.check_width(hf), model)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        hf[name] = hf[name] or None
    hf = _write_scale(rope.write(hf, model))
    return hf | {"layer_types": types, "sliding_window": window or 4096}


_SIZES = dict(
    vocab_size=256000, max_position_embeddings=8192, hidden_size=2304, num_hidden_layers=26,
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, intermediate_size=9216,
    hidden_act=..., hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
)  # fmt: skip
GEMMA2 = dataclasses.replace(
    llama.LLAMA,
    name="gemma2",
    model=llama.LIKE_LLAMA | {
        "norm_place": "sandwich", "norm_zero_centered": True, "scale_embeddings": True,
    },
    keys=(
        *llama.keys(**_SIZES), *llama.LAYERS,
        Key("attention_scale", "attention_scale"),
        Key("attn_logit_softcapping", "attention_softcap"),
        Key("final_logit_softcapping", "output_softcap"),
    ),
    fixed=rope.FIXED | {
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
    nulls=("attn_logit_softcapping", "final_logit_softcapping"),
    modules=llama.LLAMA.modules | llama.in_layers({
        "attention_norm_out": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_norm_out": "post_feedforward_layernorm",
    }),
    classes=llama.decoders("Gemma2"),
    read=_read_gemma2,
    write=_write_gemma2,
)  # fmt: skip


def _read_gemma3(hf: dict, names: Collection[str]) -> dict:
    """Reads the two rotary bases, of sliding and full layers, and the attention scale."""
    period = llama.count(hf, "sliding_window_pattern", 6)
    types = llama.layer_types(hf, 26, 4096, lambda i: (i + 1) % period == 0)
    hf, local = rope.read_by_type(hf, names, 1e6, "rope_local_base_freq", 10_000.0)
    hf |= llama.read_layers(types, [local * (kind == "sliding_attention") for kind in types])
    return _read_scale(hf)


def _write_gemma3(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(hf, model)
    hf = _write_scale(rope.write_by_type(rope.check_width(hf), model, types))
    return hf | {
        "rope_local_base_freq": hf["rope_parameters"]["sliding_attention"]["rope_theta"],
        "layer_types": types,
        "sliding_window": window or 4096,
    }


GEMMA3 = dataclasses.replace(
    llama.LLAMA,
    name="gemma3_text",
    model=GEMMA2.model | {"qk_norm": True},
    keys=(
        *llama.keys(**_SIZES | dict(vocab_size=262208, max_position_embeddings=131072)),
        *llama.LAYERS,
        Key("attention_scale", "attention_scale"),
    ),
    fixed=GEMMA2.fixed | {
        "final_logit_softcapping": (None,), "attn_logit_softcapping": (None,),
    },
    modules=GEMMA2.modules | llama.in_layers(llama.QK_NORMS),
    classes={"lm": "Gemma3ForCausalLM"},
    read=_read_gemma3,
    write=_write_gemma3,
)  # fmt: skip

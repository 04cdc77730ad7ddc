"""Mixtures of experts that else are LLaMA."""

import dataclasses
from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families import llama, rope
from llm_jax.hub.family import Key


def check_gates(hf: dict, k: int, family: str) -> None:
    """Refuses gates that are normalised to a single one."""
    if hf.get("num_experts_per_tok", k) == 1:
        raise ConfigError(f"config.json: num_experts_per_tok=1: {family}'s one gate is then 1, "
                          "that of llm_jax the router's score; it has 2 or more")


def read_dense(hf: dict, default: int, dense: Sequence[bool]) -> list[str]:
    """What each layer has beside its kind, where some are dense, of intermediate_size."""
    wide = configs.typed("config.json: intermediate_size", 0, hf.pop("intermediate_size", default))
    return [f" num_experts=0 mlp_dim={wide}" if x else "" for x in dense]


def dense_layers(model: ConfigDict, family: str) -> tuple[list[int], int]:
    """The layers without experts, and their width."""
    layers = configs.layers(model, model.num_layers)
    dense = [i for i, layer in enumerate(layers) if not layer.num_experts]
    widths = {layers[i].mlp_dim for i in dense} or {model.mlp_dim}
    if len(widths) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: dense layers of {family} have one "
                          "mlp_dim")
    return dense, widths.pop()


def _read_mixtral(hf: dict, names: Collection[str]) -> dict:
    check_gates(hf, 2, "mixtral")
    return llama.read_mistral(hf, names, None, 1e6)


MIXTRAL = dataclasses.replace(
    llama.MISTRAL,
    name="mixtral",
    keys=(
        *llama.keys(num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5,
                     max_position_embeddings=4096 * 32), *llama.LAYERS,
        Key("num_local_experts", "num_experts", 8),
        Key("num_experts_per_tok", "experts_per_token", 2),
        Key("router_aux_loss_coef", "router_balance", 0.001),
    ),
    fixed=rope.FIXED | {"router_jitter_noise": (0.0,)},
    synonyms={"num_experts": "num_local_experts"},
    experts=llama.in_layers({
        "mlp/router": "block_sparse_moe.gate.weight",
        "mlp/gate": "block_sparse_moe.experts.{}.w1.weight",
        "mlp/up": "block_sparse_moe.experts.{}.w3.weight",
        "mlp/down": "block_sparse_moe.experts.{}.w2.weight",
    }),
    classes=llama.decoders("Mixtral"),
    read=_read_mixtral,
)  # fmt: skip

EXPERTS = llama.in_layers({
    "mlp/router": "mlp.gate.weight",
    "mlp/gate": "mlp.experts.{}.gate_proj.weight",
    "mlp/up": "mlp.experts.{}.up_proj.weight",
    "mlp/down": "mlp.experts.{}.down_proj.weight",
})  # fmt: skip


def _read_qwen3_moe(hf: dict, names: Collection[str]) -> dict:
    if hf.get("norm_topk_prob"):
        check_gates(hf, 8, "qwen3_moe")
    n, step = llama.depth(hf, 24), hf.pop("decoder_sparse_step", 1)
    only = hf.pop("mlp_only_layers", None) or []
    if type(step) is not int or step < 1 or not isinstance(only, list):
        raise ConfigError(f"config.json: decoder_sparse_step={step!r}, mlp_only_layers={only!r}: "
                          "must be 1 or more, and a list")
    window = hf.pop("sliding_window", 4096)
    window = window if hf.pop("use_sliding_window", False) else None
    hf.pop("max_window_layers", None), hf.pop("layer_types", None)  # which it does not read
    types = ["full_attention" if window is None else "sliding_attention"] * n
    more = read_dense(hf, 6144, [i in only or (i + 1) % step > 0 for i in range(n)])
    return rope.read(hf | llama.read_layers(llama.read_types(hf, window, types), more), names)


def _write_qwen3_moe(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(hf, model)
    if len(set(types)) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: qwen3_moe has one kind of attention")
    dense, wide = dense_layers(model, "qwen3_moe")
    return rope.write(hf, model) | {
        "use_sliding_window": window is not None, "sliding_window": window,
        "mlp_only_layers": dense, "decoder_sparse_step": 1, "intermediate_size": wide,
    }  # fmt: skip


QWEN3_MOE = dataclasses.replace(
    llama.QWEN3,
    name="qwen3_moe",
    keys=(
        *llama.keys(vocab_size=151936, hidden_size=2048, num_hidden_layers=24,
                    num_key_value_heads=4, max_position_embeddings=32768,
                    intermediate_size=None), *llama.LAYERS,
        Key("moe_intermediate_size", "mlp_dim", 768),
        Key("num_experts", "num_experts", 128),
        Key("num_experts_per_tok", "experts_per_token", 8),
        Key("norm_topk_prob", "router_normalized", False),
        Key("router_aux_loss_coef", "router_balance", 0.001),
    ),
    synonyms={"num_local_experts": "num_experts"},
    nulls=("sliding_window",),
    experts=EXPERTS,
    classes=llama.decoders("Qwen3Moe"),
    read=_read_qwen3_moe,
    write=_write_qwen3_moe,
)  # fmt: skip


def _read_gpt_oss(hf: dict, names: Collection[str]) -> dict:
    check_gates(hf, 4, "gpt_oss")
    if (hf.get("quantization_config") or {}).get("quant_method") == "mxfp4":
        hf.pop("quantization_config")  # files.Tensors undoes it
    n, window = llama.depth(hf, 36), hf.pop("sliding_window", 128)
    types = ["full_attention" if i % 2 else "sliding_attention" for i in range(n)]
    hf |= llama.read_layers(llama.read_types(hf, window, types))
    if not {"rope_parameters", "rope_scaling"} & hf.keys():
        hf["rope_parameters"] = {"rope_type": "yarn", "factor": 32.0, "truncate": False,
                                 "original_max_position_embeddings": 4096}  # fmt: skip
    return rope.read(hf, names, 150_000.0)


def _write_gpt_oss(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(hf, model)
    return rope.write(hf, model) | {"layer_types": types, "sliding_window": window or 128}


GPT_OSS = dataclasses.replace(
    llama.LLAMA,
    name="gpt_oss",
    model=llama.LLAMA.model | {"attention_sinks": True, "expert_bias": True},
    keys=(
        *llama.keys(
            {"silu": "clamped_swiglu"}, vocab_size=201088, hidden_size=2880, head_dim=64,
            num_hidden_layers=36, num_attention_heads=64, num_key_value_heads=8,
            intermediate_size=2880, max_position_embeddings=131072, rms_norm_eps=1e-5,
        ), *llama.LAYERS,
        Key("attention_bias", "use_bias", True),
        Key("num_local_experts", "num_experts", 128),
        Key("num_experts_per_tok", "experts_per_token", 4),
        Key("router_aux_loss_coef", "router_balance", 0.001),
    ),
    fixed=rope.FIXED | {"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
    synonyms={"num_experts": "num_local_experts"},
    modules=llama.LLAMA.modules | llama.in_layers({"attention/sinks": "self_attn.sinks"}),
    experts=llama.in_layers({
        "mlp/router": "mlp.router.weight",
        "mlp/logit_bias": "mlp.router.bias",
        "mlp/gate": "mlp.experts.gate_up_proj",
        "mlp/up": "mlp.experts.gate_up_proj",
        "mlp/down": "mlp.experts.down_proj",
        "mlp/gate_bias": "mlp.experts.gate_up_proj_bias",
        "mlp/up_bias": "mlp.experts.gate_up_proj_bias",
        "mlp/down_bias": "mlp.experts.down_proj_bias",
    }),
    within={"gate_up_proj": 1, "gate_up_proj_bias": 1},  # a unit's gate before its up
    classes=llama.decoders("GptOss"),
    read=_read_gpt_oss,
    write=_write_gpt_oss,
)  # fmt: skip

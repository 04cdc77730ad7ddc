"""LLaMA-like models with mixtures of experts."""

import dataclasses
from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import pattern
from llm_jax.config import ConfigError
from llm_jax.hub.families import llama, rope
from llm_jax.hub.family import SAME, Key


def check_gates(hf: dict, k: int, family: str) -> None:
    """Raises ConfigError for a single normalised gate."""
    if hf.get("num_experts_per_tok", k) == 1:
        raise ConfigError(f"config.json: num_experts_per_tok=1: must be 2 or more; the single gate "
                          f"is 1 in {family}, but the router's score in llm_jax")


def read_dense(hf: dict, default: int, dense: Sequence[bool]) -> list[str]:
    """Returns the further settings of each layer if some are dense, with intermediate_size."""
    wide = llama.size(hf, "intermediate_size", default, "mlp_dim")
    return [f" num_experts=0 mlp_dim={wide}" if x else "" for x in dense]


def dense_layers(model: ConfigDict, family: str) -> tuple[list[int], int]:
    """Returns the dense layers and their width."""
    layers = configs.layers(model, model.num_layers)
    dense = [i for i, layer in enumerate(layers) if not layer.num_experts]
    widths = {layers[i].mlp_dim for i in dense} or {model.mlp_dim}
    if len(widths) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: all dense layers of {family} must have "
                          "the same mlp_dim")
    return dense, widths.pop()


def _read_mixtral(hf: dict, names: Collection[str]) -> dict:
    check_gates(hf, 2, "mixtral")
    return llama.read_mistral(hf, names, None, 1e6)


MIXTRAL = dataclasses.replace(
    llama.MISTRAL,
    name="mixtral",
    keys=(
        *llama.keys(num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5,
                    max_position_embeddings=4096 * 32, num_local_experts=8, num_experts_per_tok=2,
                    router_aux_loss_coef=0.001), *llama.LAYERS,
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


def _dense(hf: dict, n: int) -> list[bool]:
    """Returns for each layer whether it is dense."""
    step, only = hf.pop("decoder_sparse_step", 1), hf.pop("mlp_only_layers", None) or []
    if type(step) is not int or step < 1 or not isinstance(only, list):
        raise ConfigError(f"config.json: decoder_sparse_step={step!r}, mlp_only_layers={only!r}: "
                          "must be at least 1, and a list")
    return [i in only or (i + 1) % step > 0 for i in range(n)]


def _read_qwen3_moe(hf: dict, names: Collection[str]) -> dict:
    if hf.get("norm_topk_prob"):
        check_gates(hf, 8, "qwen3_moe")
    n = llama.depth(hf, 24)
    window = hf.pop("sliding_window", 4096)
    window = window if hf.pop("use_sliding_window", False) else None
    hf.pop("max_window_layers", None), hf.pop("layer_types", None)  # unused
    types = ["full_attention" if window is None else "sliding_attention"] * n
    more = read_dense(hf, 6144, _dense(hf, n))
    return rope.read(hf | llama.read_layers(llama.read_types(hf, window, types), more), names)


def _write_qwen3_moe(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(hf, model)
    if len(set(types)) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: qwen3_moe needs one attention variant")
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
                    intermediate_size=None, moe_intermediate_size=768, num_experts=128,
                    num_experts_per_tok=8, norm_topk_prob=False, router_aux_loss_coef=0.001),
        *llama.LAYERS,
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
        hf.pop("quantization_config")  # files.Tensors dequantises
    hf |= llama.read_layers(llama.layer_types(hf, 36, 128, lambda i: i % 2))
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
            num_local_experts=128, num_experts_per_tok=4, router_aux_loss_coef=0.001,
        ), *llama.LAYERS,
        Key("attention_bias", "use_bias", True),
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
    within={"gate_up_proj": "mlp_dim", "gate_up_proj_bias": "mlp_dim"},
    classes=llama.decoders("GptOss"),
    read=_read_gpt_oss,
    write=_write_gpt_oss,
)  # fmt: skip


_LINEAR = {  # key of our gated_deltanet layers -> their entry
    "num_heads": "linear_num_value_heads", "num_key_heads": "linear_num_key_heads",
    "head_dim": "linear_key_head_dim", "value_dim": "linear_value_head_dim",
    "short_conv": "linear_conv_kernel_dim",
}  # fmt: skip
_LINEAR_SIZES = dict(zip(_LINEAR, (32, 16, 128, 128, 4), strict=True))


def _read_qwen3_next(hf: dict, names: Collection[str]) -> dict:
    """Linear attention layers have separate sizes, and no positions."""
    if hf.get("norm_topk_prob", True):
        check_gates(hf, 10, "qwen3_next")
    n, period = llama.depth(hf, 48), llama.count(hf, "full_attention_interval", 4)
    known, types = ("full_attention", "linear_attention"), hf.pop("layer_types", None)
    types = types or [known[(i + 1) % period > 0] for i in range(n)]
    if not isinstance(types, list) or len(types) != n or not set(types) <= set(known):
        raise ConfigError(f"config.json: layer_types={types!r}: must list 'full_attention' or "
                          f"'linear_attention' for each of num_hidden_layers={n}")
    sizes = {key: llama.size(hf, name, _LINEAR_SIZES[key], key) for key, name in _LINEAR.items()}
    if sizes["num_heads"] % sizes["num_key_heads"]:
        entries = (f"{_LINEAR[key]}={sizes[key]}" for key in ("num_key_heads", "num_heads"))
        raise ConfigError(f"config.json: {' does not divide '.join(entries)}")
    linear = "gated_deltanet " + " ".join(f"{key}={size}" for key, size in sizes.items())
    linear += " positions=none qk_norm=False"
    kinds = {"full_attention": "dense", "linear_attention": linear}
    more = read_dense(hf, 5632, _dense(hf, n))
    hf["layers"] = pattern.write([kinds[t] + x for t, x in zip(types, more, strict=True)])
    width, shared = hf.get("moe_intermediate_size", 512), "shared_expert_intermediate_size"
    wide = configs.typed(f"config.json: {shared}", 0, hf.pop(shared, 512))
    width = configs.typed("config.json: moe_intermediate_size", 0, width)
    if width < 1 or wide < width or wide % width:
        raise ConfigError(f"config.json: {shared}={wide}: must be a multiple of "
                          f"moe_intermediate_size={width}")
    act = hf.get("hidden_act", "silu")
    if "linear_attention" in types and act not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act={act!r}: llm_jax supports only silu in the "
                          "convolutions of linear attention")
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    turned = hf.pop("partial_rotary_factor", 0.25)
    turned = scaling.get("partial_rotary_factor", turned) if isinstance(scaling, dict) else 0.0
    head = configs.typed("config.json: head_dim", 0, hf.get("head_dim", 256))
    turned = int(head * configs.typed("config.json: rope_parameters", 0.0, turned))
    hf = rope.read(hf | {"shared_experts": wide // width, "rotary_dim": turned}, names)
    hf.pop("rope_parameters.partial_rotary_factor", None)
    return hf


def _write_qwen3_next(hf: dict, model: ConfigDict) -> dict:
    layers = configs.layers(model, model.num_layers)
    linear = [layer for layer in layers if layer.attention not in SAME]
    dense, wide = dense_layers(model, "qwen3_next")
    hf = rope.write({k: v for k, v in hf.items() if k != "layers"}, model)
    turned = hf.pop("rotary_dim") / model.head_dim or 1.0
    for part in ("rope_parameters", "rope_scaling"):
        hf[part] = hf[part] and hf[part] | {"partial_rotary_factor": turned}
    sizes = {name: linear[0][key] if linear else _LINEAR_SIZES[key]
             for key, name in _LINEAR.items()}  # fmt: skip
    return hf | sizes | {
        "layer_types": ["full_attention" if x.attention in SAME else "linear_attention"
                        for x in layers],
        "mlp_only_layers": dense, "decoder_sparse_step": 1, "intermediate_size": wide,
        "partial_rotary_factor": turned,
        "shared_expert_intermediate_size": hf.pop("shared_experts") * model.mlp_dim,
    }  # fmt: skip


_OF_LINEAR = {
    "query": "in_proj_qkvz", "key": "in_proj_qkvz", "value": "in_proj_qkvz",
    "gate": "in_proj_qkvz", "out": "out_proj",
}  # fmt: skip
QWEN3_NEXT = dataclasses.replace(
    QWEN3_MOE,
    name="qwen3_next",
    model=llama.LIKE_LLAMA | {
        "qk_norm": True, "norm_zero_centered": True, "output_gate": True, "shared_gate": True,
    },
    keys=(
        *llama.keys(vocab_size=151936, hidden_size=2048, num_hidden_layers=48, head_dim=256,
                    num_attention_heads=16, num_key_value_heads=2, max_position_embeddings=32768,
                    intermediate_size=None, moe_intermediate_size=512, num_experts=512,
                    num_experts_per_tok=10, norm_topk_prob=True, router_aux_loss_coef=0.001),
        Key("layers", "layers"),
        Key("shared_experts", "shared_experts"),
        Key("rotary_dim", "rotary_dim"),
    ),
    modules=QWEN3_MOE.modules | llama.in_layers({
        "attention/gate": "self_attn.q_proj",
        "attention/beta": "linear_attn.in_proj_ba",
        "attention/decay/kernel": "linear_attn.in_proj_ba.weight",
        "attention/decay/bias": "linear_attn.dt_bias",
        "attention/query_conv": "linear_attn.conv1d",
        "attention/key_conv": "linear_attn.conv1d",
        "attention/value_conv": "linear_attn.conv1d",
        "attention/log_speed": "linear_attn.A_log",
        "attention/norm": "linear_attn.norm.weight",
        "mlp/shared/gate": "mlp.shared_expert.gate_proj",
        "mlp/shared/up": "mlp.shared_expert.up_proj",
        "mlp/shared/down": "mlp.shared_expert.down_proj",
        "mlp/shared_gate": "mlp.shared_expert_gate",
    }),
    by_kind={"gated_deltanet": llama.in_layers(
        {f"attention/{ours}": f"linear_attn.{theirs}" for ours, theirs in _OF_LINEAR.items()}
    )},
    within={"q_proj.weight": "num_heads", "in_proj_qkvz.weight": "num_key_heads",
            "in_proj_ba.weight": "num_key_heads"},
    units={"model.layers.{}.linear_attn.conv1d.weight": 1},
    dropped=(*llama.LLAMA.dropped, r"mtp\..*"),  # multi-token prediction
    classes=llama.decoders("Qwen3Next"),
    read=_read_qwen3_next,
    write=_write_qwen3_next,
)  # fmt: skip

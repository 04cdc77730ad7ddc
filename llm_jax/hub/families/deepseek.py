"""DeepSeek-V2 and V3: multi-head latent attention, and mixture of experts with shared experts."""

import dataclasses
import math
from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families import experts, llama, rope
from llm_jax.hub.family import Key

_HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def _read_v3(hf: dict, names: Collection[str], layers: int = 61, first: int = 3,
             wide: int = 18432) -> dict:  # fmt: skip
    for name in ("qk_head_dim", "num_nextn_predict_layers", "num_mtp_layers"):
        hf.pop(name, None)  # derived from others, or unused
    rank = hf.pop("q_lora_rank", 1536)
    sizes = {name: configs.typed(f"config.json: {name}", 0, hf.get(name, default))
             for name, default in _HEADS.items()}  # fmt: skip
    plain, turned, value = sizes.values()
    size = hf.pop("head_dim", None)  # transformers computes the rotary angles from it
    if size not in (None, turned):
        raise ConfigError(f"config.json: head_dim={size!r}: must be qk_rope_head_dim={turned}")
    hf.pop("v_head_dim", None)
    if value != plain:
        raise ConfigError(f"config.json: v_head_dim={value} and qk_nope_head_dim={plain} differ; "
                          "llm_jax supports one size for both, model.head_dim")
    heads = hf.get("num_attention_heads", 128 if layers == 61 else 32)
    if hf.pop("num_key_value_heads", heads) != heads:
        raise ConfigError("config.json: num_key_value_heads and num_attention_heads differ; latent "
                          "attention needs keys and values for every head")
    n, first = llama.depth(hf, layers), hf.pop("first_k_dense_replace", first)
    first = configs.typed("config.json: first_k_dense_replace", 0, first)
    more = experts.read_dense(hf, wide, [i < first for i in range(n)])
    if any(more):
        hf["layers"] = f"{min(first, n)}{more[0]}" + ", rest" * (first < n)
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    scaling = scaling if isinstance(scaling, dict) else {}
    stretched = scaling.get("rope_type", scaling.get("type", "default")) != "default"
    if (strength := scaling.get("mscale_all_dim")) and stretched:
        hf["attention_scale"] = _scale(plain + turned, scaling.get("factor"), strength)
    return rope.read(hf | {"q_lora_rank": rank or 0}, names)


def _scale(size: int, factor: float, strength: float) -> float:
    """The attention scale if it includes YaRN's factor, instead of queries and keys."""
    return size**-0.5 * rope.mscale(factor, strength) ** 2


def _write_v3(hf: dict, model: ConfigDict) -> dict:
    dense, wide = experts.dense_layers(model, hf["model_type"])
    if dense != list(range(len(dense))):
        raise ConfigError(f"model.layers={model.layers!r}: {hf['model_type']} needs all dense "
                          "layers before those with experts")
    scale, factor = hf.pop("attention_scale"), model.rotary_factor
    hf = rope.write({k: v for k, v in hf.items() if k not in ("attention", "layers")}, model)
    if scale:
        if model.rotary_scaling != "yarn" or factor <= 1:
            raise ConfigError(f"model.attention_scale={scale}: must be 0 for {hf['model_type']}, "
                              "or derived from YaRN's factor")
        size = model.head_dim + model.latent_rotary
        strength = round((math.sqrt(scale * size**0.5) - 1) / (0.1 * math.log(factor)), 6)
        for part in (hf["rope_parameters"], hf["rope_scaling"]):
            part |= {"mscale": strength, "mscale_all_dim": strength}
    return hf | {
        "first_k_dense_replace": len(dense), "intermediate_size": wide,
        "v_head_dim": hf["qk_nope_head_dim"], "q_lora_rank": hf["q_lora_rank"] or None,
    }  # fmt: skip


_SIZES = dict(
    head_dim=..., intermediate_size=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
    kv_lora_rank=512, q_lora_rank=None, moe_intermediate_size=2048, n_routed_experts=256,
    n_shared_experts=1, num_experts_per_tok=8, routed_scaling_factor=2.5, n_group=8, topk_group=4,
    aux_loss_alpha=None,
)  # fmt: skip
_OURS = Key("attention_scale", "attention_scale"), Key("layers", "layers")
_MODEL = llama.LIKE_LLAMA | {"attention": "latent", "rotary_interleaved": True}
DEEPSEEK_V3 = dataclasses.replace(
    llama.LLAMA,
    name="deepseek_v3",
    model=_MODEL | {"router_scores": "sigmoid", "router_bias": True},
    keys=(
        *llama.keys(**_SIZES, vocab_size=129280, hidden_size=7168, num_hidden_layers=61,
                    num_attention_heads=128, max_position_embeddings=4096, norm_topk_prob=True,
                    rope_interleave=True), *_OURS,
    ),
    fixed=rope.FIXED | {
        "attention_bias": (False,),
        "rms_norm_eps": (1e-6,),  # the norms of latent vectors always use it
        "moe_layer_freq": (None, 1),
        "scoring_func": (None, "sigmoid"),
        "topk_method": (None, "noaux_tc"),
    },
    synonyms={"num_local_experts": "n_routed_experts"},
    nulls=("q_lora_rank",),
    modules=llama.LLAMA.modules | llama.in_layers({
        "attention/query": "self_attn.q_proj",
        "attention/query_down": "self_attn.q_a_proj",
        "attention/query_norm": "self_attn.q_a_layernorm",
        "attention/key_value_down": "self_attn.kv_a_proj_with_mqa",
        "attention/latent_norm": "self_attn.kv_a_layernorm",
        "attention/up_key": "self_attn.kv_b_proj.weight",
        "attention/up_value": "self_attn.kv_b_proj.weight",
        "mlp/shared/gate": "mlp.shared_experts.gate_proj",
        "mlp/shared/up": "mlp.shared_experts.up_proj",
        "mlp/shared/down": "mlp.shared_experts.down_proj",
    }),
    given={"latent_query": llama.in_layers({"attention/query": "self_attn.q_b_proj"})},
    experts=experts.EXPERTS
    | llama.in_layers({"mlp/choice_bias": "mlp.gate.e_score_correction_bias"}),
    within={"kv_b_proj.weight": "num_heads"},  # per head: key, then value
    dropped=(*llama.LLAMA.dropped, r"model\.layers\.61\..*"),  # multi-token prediction
    classes=llama.decoders("DeepseekV3"),
    read=lambda hf, names: _read_v3(_check_v3(hf), names),
    write=_write_v3,
)  # fmt: skip


def _check_v3(hf: dict) -> dict:
    if hf.get("norm_topk_prob", True):
        experts.check_gates(hf, 8, "deepseek_v3")
    return hf


def _read_v2(hf: dict, names: Collection[str]) -> dict:
    if hf.get("topk_method", "greedy") == "greedy":
        hf |= {"n_group": 1, "topk_group": 1}
    elif hf.get("topk_group") is None:
        raise ConfigError("config.json: topk_group: needed with topk_method='group_limited_greedy'")
    return _read_v3(hf, names, 32, 0, 11008)


def _write_v2(hf: dict, model: ConfigDict) -> dict:
    groups = model.router_groups > 1
    hf["topk_method"] = "group_limited_greedy" if groups else "greedy"
    return _write_v3(rope.check_width(hf), model)


DEEPSEEK_V2 = dataclasses.replace(
    DEEPSEEK_V3,
    name="deepseek_v2",
    model=_MODEL | {"router_normalized": False},
    keys=(*llama.keys(**_SIZES | dict(
        vocab_size=102400, moe_intermediate_size=1407, n_routed_experts=64, n_shared_experts=2,
        num_experts_per_tok=None, routed_scaling_factor=1.0, n_group=None, topk_group=None,
    )), *_OURS),
    fixed=rope.FIXED | {
        "attention_bias": (False,), "mlp_bias": (False,), "rms_norm_eps": (1e-6,),
        "moe_layer_freq": (None, 1), "scoring_func": (None, "softmax"),
        "norm_topk_prob": (False,), "topk_method": ("greedy", "group_limited_greedy"),
    },
    synonyms={"num_experts": "n_routed_experts"},
    dropped=llama.LLAMA.dropped,
    experts=experts.EXPERTS,
    classes={head: x for head, x in llama.decoders("DeepseekV2").items() if head != "token"},
    read=_read_v2,
    write=_write_v2,
)  # fmt: skip

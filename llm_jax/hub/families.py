"""The tables, one a family; llm_jax/hub/family.py says how they are read.

A new family is one table here: the config keys that make it, how config.json calls the
others, and the name of each module.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax import pattern
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.hub.family import SAME, TOKEN_IDS, Family, Key

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
    "relu": "reglu",
}


def block(
    stack: str, theirs: str, attention: str, mlp: str, norms: str, cross: str = ""
) -> dict[str, str]:
    """Entries of one repeated block: a module of ours -> theirs, '{}' in it for the layer.

    Args:
      stack: encoder or decoder.
      theirs: what all names of a layer begin with.
      attention, cross: names of query, key, value and output.
      mlp: names of a gate, if there is one, and of the projections up and down.
      norms: of each sublayer, in their order.
    """
    ours = [f"{part}/{name}" for part in ("attention", *["cross_attention"] * bool(cross))
            for name in ("query", "key", "value", "out")]  # fmt: skip
    ours += ["mlp/gate", "mlp/up", "mlp/down"][-len(mlp.split()) :]
    ours += ["attention_norm", *["cross_norm"] * bool(cross), "mlp_norm"]
    names = " ".join((attention, cross, mlp, norms)).split()
    pairs = zip(ours, names, strict=True)
    return {f"{stack}/stack/layers/block/{k}": f"{theirs}.{v}" for k, v in pairs}


def classifies(hf: dict) -> str:
    """The head that "classifier" is where sequences and tokens have one of the same shape."""
    return "token" if "ForTokenClassification" in str(hf.get("architectures")) else "sequence"


_ONE_CLASSIFIER = {
    "sequence": {"sequence": "classifier"}, "token": {"token": "classifier"},
    "span": {"span": "qa_outputs"},
}  # fmt: skip


GPT2 = Family(
    name="gpt2",
    model={"activation": "gelu_tanh"},
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("n_positions", "max_length", 1024),
        Key("n_embd", "embed_dim", 768),
        Key("n_layer", "num_layers", 12),
        Key("n_head", "num_heads", 12),
        Key("n_inner", "mlp_dim"),
        Key("activation_function", "activation", "gelu_new", ACTIVATIONS),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("resid_pdrop", "dropout", 0.1),
        Key("embd_pdrop", "dropout", 0.1),
        Key("attn_pdrop", "attention_dropout", 0.1),
        Key("initializer_range", "initializer_range", 0.02),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    fixed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    synonyms={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    linear=False,
    prefix="transformer.",
    modules={
        "embed": "transformer.wte",
        "decoder/embeddings/positions": "transformer.wpe",
        "decoder/final_norm": "transformer.ln_f",
        "output": "lm_head.weight",
    } | block(
        "decoder", "transformer.h.{}", "attn.c_attn attn.c_attn attn.c_attn attn.c_proj",
        "mlp.c_fc mlp.c_proj", "ln_1 ln_2",
    ),
    heads={"head": {"score.": "sequence", "classifier.": "token", "qa_outputs.": "span"}},
    by_head=_ONE_CLASSIFIER | {"sequence": {"sequence": "score"}},
    classes={"lm": "GPT2LMHeadModel", "sequence": "GPT2ForSequenceClassification",
             "token": "GPT2ForTokenClassification", "span": "GPT2ForQuestionAnswering"},
    copies={"lm_head.weight": "transformer.wte.weight"},
    dropped=(r".*\.attn\.(masked_)?bias",),
)  # fmt: skip


_ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3"}
_ROPE_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _read_rope(hf: dict, names: Collection[str], theta: float = 10_000.0) -> dict:
    """Both spellings: rope_parameters, and rope_scaling beside rope_theta, which goes before it."""
    new, old = hf.pop("rope_parameters", None), hf.pop("rope_scaling", None)
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(value, dict | None):
            raise ConfigError(f"config.json: {name}={value!r}: must be an object")
    rope = {"rope_theta": hf.pop("rope_theta", theta)} | (old or new or {})
    kind = rope.setdefault("rope_type", rope.pop("type", "default"))
    for name, value in (new or {}).items():  # transformers 5 would take the old spelling
        if rope.get(name, value) != value:
            raise ConfigError(f"config.json: rope_parameters has {name}={value!r}, rope_scaling "
                              f"and rope_theta {name}={rope[name]!r}; remove one of the two "
                              "spellings")
    if kind == "llama3":
        length = hf.pop("original_max_position_embeddings", None)
        rope |= {"original_max_position_embeddings": length} if length else {}
        rope.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings", 2048))
    missing = [name for name in _ROPE_NEEDS.get(kind, ()) if rope.get(name) is None]
    if missing:
        raise ConfigError(f"config.json: rope_type={kind!r} needs {', '.join(missing)}")
    if kind in ("default", "linear"):  # which read no other
        rope = {k: rope[k] for k in ("rope_theta", "rope_type", *_ROPE_NEEDS.get(kind, ()))} | {
            k: v for k, v in rope.items() if k == "partial_rotary_factor"
        }
    return hf | {f"rope_parameters.{k}": v for k, v in rope.items()}


def _write_llama(hf: dict, model: ConfigDict) -> dict:
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    if width % heads:
        raise ConfigError(f"model.embed_dim={width}: transformers opens a {hf['model_type']} only "
                          f"where it is a multiple of model.num_heads={heads}, whatever "
                          "model.head_dim is")
    return _write_rope(hf, model)


def _write_rope(hf: dict, model: ConfigDict) -> dict:
    """RoPE in both spellings: transformers 4 and many servers read the old one alone."""
    hf["initializer_range"] = min(hf["initializer_range"], 1.0)  # larger ones it does not open
    start = "rope_parameters."
    rope = {k.removeprefix(start): v for k, v in hf.items() if k.startswith(start)}
    base, kind = rope["rope_theta"], rope["rope_type"]
    scaling = {"rope_type": kind} | {k: rope[k] for k in _ROPE_NEEDS.get(kind, ())}
    return {k: v for k, v in hf.items() if not k.startswith(start)} | {
        "rope_parameters": {"rope_theta": base} | scaling,
        "rope_theta": base,
        "rope_scaling": scaling if kind != "default" else None,
    }


def _llama_keys(**defaults: Any) -> tuple[Key, ...]:
    """Of LLaMA and those that follow from it; defaults by their names for them."""
    sizes = {
        "vocab_size": ("vocab_size", 32000),
        "max_position_embeddings": ("max_length", 2048),
        "hidden_size": ("embed_dim", 4096),
        "num_hidden_layers": ("num_layers", 32),
        "num_attention_heads": ("num_heads", 32),
        "num_key_value_heads": ("num_kv_heads", None),
        "head_dim": ("head_dim", None),
        "intermediate_size": ("mlp_dim", 11008),
        "rms_norm_eps": ("norm_epsilon", 1e-6),
        "attention_dropout": ("attention_dropout", 0.0),
        "initializer_range": ("initializer_range", 0.02),
        "tie_word_embeddings": ("tie_embeddings", False),
        "rope_parameters.rope_theta": ("rotary_base", None),
        "rope_parameters.factor": ("rotary_factor", None),
        "rope_parameters.original_max_position_embeddings": ("rotary_original_length", None),
    }
    keys = tuple(Key(k, ours, defaults.get(k, value)) for k, (ours, value) in sizes.items())
    entry = "hidden_activation" if "hidden_activation" in defaults else "hidden_act"
    act = defaults.get(entry, "silu")
    return (*keys, Key(entry, "activation", act, {act: GATED[act]} | GATED),
            Key("rope_parameters.rope_type", "rotary_scaling", "default", _ROPE_TYPES))


def _decoders(name: str) -> dict[str, str]:
    """Their classes of a decoder's heads."""
    return {"lm": f"{name}ForCausalLM", "sequence": f"{name}ForSequenceClassification",
            "token": f"{name}ForTokenClassification"}  # fmt: skip


ROPE_FIXED = {
    "rope_parameters.low_freq_factor": (1.0,),
    "rope_parameters.high_freq_factor": (4.0,),
    "rope_parameters.partial_rotary_factor": (None, 1.0),
}
LLAMA = Family(
    name="llama",
    model={"norm": "rmsnorm", "positions": "rotary"},
    keys=(
        *_llama_keys(),
        Key("attention_bias", "use_bias", False),
        Key("mlp_bias", "use_bias", False),
    ),
    fixed=ROPE_FIXED,
    prefix="model.",
    modules={
        "embed": "model.embed_tokens",
        "decoder/final_norm": "model.norm",
        "output": "lm_head.weight",
    } | block(
        "decoder", "model.layers.{}",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj mlp.down_proj", "input_layernorm post_attention_layernorm",
    ),
    heads={"head": {"score.": classifies}},
    by_head={"sequence": {"sequence": "score"}, "token": {"token": "score"}},
    classes=_decoders("Llama"),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    dropped=(r".*\.rotary_emb\.inv_freq",),
    read=_read_rope,
    write=_write_llama,
)  # fmt: skip

# Those that follow from LLaMA.
def _in_layers(modules: dict[str, str]) -> dict[str, str]:
    """Further entries of its layers."""
    ours = "decoder/stack/layers/block/"
    return {f"{ours}{k}": f"model.layers.{{}}.{v}" for k, v in modules.items()}


LIKE_LLAMA = LLAMA.model | {"use_bias": False}
LAYERS = (Key("attention", "attention"), Key("layers", "layers"), Key("sliding_window", "window"))
KINDS = {"full_attention": "dense", "sliding_attention": "local"}


def _read_layers(hf: dict, window: int | None, default: list[str], local: str = "") -> dict:
    """Their layer_types as our list; `local`: what else the sliding ones have."""
    types, n = hf.pop("layer_types", None) or default, len(default)
    if not isinstance(types, list) or len(types) != n or not set(types) <= KINDS.keys():
        raise ConfigError(f"config.json: layer_types={types!r}: lists 'full_attention' and "
                          f"'sliding_attention' for num_hidden_layers={n}")
    sliding = "sliding_attention" in types
    if sliding and window is None:
        raise ConfigError("config.json: layer_types has 'sliding_attention' without sliding_window")
    specs = [KINDS[x] + local * (x == "sliding_attention") for x in types]
    if len(set(specs)) > 1 or local:
        hf["layers"] = pattern.write(specs)
    else:
        hf["attention"] = specs[0]
    return hf | ({"sliding_window": window} if sliding else {})


def _write_layers(hf: dict, model: ConfigDict) -> tuple[dict, list[str], int | None]:
    """config.json without our list, and what it says: their layer_types, and the window."""
    layers = configs.layers(model, model.num_layers)
    types = [
        "full_attention" if layer.attention in SAME else "sliding_attention" for layer in layers
    ]
    local = [layer for layer in layers if layer.attention not in SAME]
    if any(layer.attention != "local" or layer.window != local[0].window for layer in local):
        raise ConfigError(f"model.attention={model.attention!r}, model.layers={model.layers!r}: "
                          f"{hf['model_type']} has dense layers, and local ones of one window")
    window = local[0].window if local else None
    ours = {key.theirs for key in LAYERS}
    return {k: v for k, v in hf.items() if k not in ours}, types, window


def _read_mistral(hf: dict, names: Collection[str], window: int | None = 4096,
                  theta: float = 10_000.0) -> dict:  # fmt: skip
    window = hf.pop("sliding_window", window)
    hf.pop("layer_types", None)  # which transformers does not read either
    kind = "full_attention" if window is None else "sliding_attention"
    return _read_rope(_read_layers(hf, window, [kind]), names, theta)


def _write_mistral(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = _write_layers(hf, model)
    if len(set(types)) > 1:
        raise ConfigError(f"model.layers={model.layers!r}: {hf['model_type']} has one kind of "
                          "attention in all layers")
    return _write_rope(hf, model) | {"sliding_window": window}


MISTRAL = dataclasses.replace(
    LLAMA,
    name="mistral",
    model=LIKE_LLAMA,
    keys=(*_llama_keys(num_key_value_heads=8, intermediate_size=14336,
                       max_position_embeddings=4096 * 32), *LAYERS),
    nulls=("sliding_window",),
    classes=_decoders("Mistral"),
    read=_read_mistral,
    write=_write_mistral,
)  # fmt: skip


def _read_mixtral(hf: dict, names: Collection[str]) -> dict:
    if hf.get("num_experts_per_tok", 2) == 1:
        raise ConfigError("config.json: num_experts_per_tok=1: mixtral's one gate is then 1, that "
                          "of llm_jax the router's softmax; it has 2 or more")
    return _read_mistral(hf, names, None, 1e6)


MIXTRAL = dataclasses.replace(
    MISTRAL,
    name="mixtral",
    keys=(
        *_llama_keys(num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5,
                     max_position_embeddings=4096 * 32), *LAYERS,
        Key("num_local_experts", "num_experts", 8),
        Key("num_experts_per_tok", "experts_per_token", 2),
        Key("router_aux_loss_coef", "router_balance", 0.001),
    ),
    fixed=ROPE_FIXED | {"router_jitter_noise": (0.0,)},
    synonyms={"num_experts": "num_local_experts"},
    experts=_in_layers({
        "mlp/router": "block_sparse_moe.gate.weight",
        "mlp/gate": "block_sparse_moe.experts.{}.w1.weight",
        "mlp/up": "block_sparse_moe.experts.{}.w3.weight",
        "mlp/down": "block_sparse_moe.experts.{}.w2.weight",
    }),
    classes=_decoders("Mixtral"),
    read=_read_mixtral,
)  # fmt: skip


def _read_qwen(hf: dict, names: Collection[str]) -> dict:
    """Windows are in the layers behind the first max_window_layers, where any are."""
    window = hf.pop("sliding_window", 4096)
    window = window if hf.pop("use_sliding_window", False) else None
    first, n = hf.pop("max_window_layers", 28), hf.get("num_hidden_layers", 32)
    for name, value in (("max_window_layers", first), ("num_hidden_layers", n)):
        configs.typed(f"config.json: {name}", 0, value)
    full = n if window is None else min(first, n)
    types = ["full_attention"] * full + ["sliding_attention"] * (n - full)
    return _read_rope(_read_layers(hf, window, types), names)


def _write_qwen(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = _write_layers(hf, model)
    return _write_rope(hf, model) | {
        "layer_types": types,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": types.count("full_attention"),
    }


_QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016}
QWEN2 = dataclasses.replace(
    LLAMA,
    name="qwen2",
    model=LIKE_LLAMA | {"qkv_bias": True},
    keys=(*_llama_keys(**_QWEN, num_key_value_heads=32), *LAYERS),
    classes=_decoders("Qwen2"),
    read=_read_qwen,
    write=_write_qwen,
)
QK_NORMS = {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
QWEN3 = dataclasses.replace(
    QWEN2,
    name="qwen3",
    model=LIKE_LLAMA | {"qk_norm": True},
    keys=(*_llama_keys(**_QWEN, num_key_value_heads=32, head_dim=128), *LAYERS),
    fixed=ROPE_FIXED | {"attention_bias": (False,)},
    modules=LLAMA.modules | _in_layers(QK_NORMS),
    classes=_decoders("Qwen3"),
)
OLMO2 = dataclasses.replace(
    LLAMA,
    name="olmo2",
    model=LIKE_LLAMA | {"qk_norm": True, "qk_norm_joint": True, "norm_place": "reordered"},
    keys=_llama_keys(vocab_size=50304, rms_norm_eps=1e-5),
    fixed=ROPE_FIXED | {"attention_bias": (False,)},
    modules=LLAMA.modules | _in_layers(QK_NORMS | {
        "attention_norm": "post_attention_layernorm",
        "mlp_norm": "post_feedforward_layernorm",
    }),
    classes={"lm": "Olmo2ForCausalLM"},
    write=_write_rope,
)  # fmt: skip


def _read_gemma3(hf: dict, names: Collection[str]) -> dict:
    """Two rotary bases, of sliding layers and of the others, and a scale that heads do not say."""
    n, period = hf.get("num_hidden_layers", 26), hf.pop("sliding_window_pattern", 6)
    for name, value in (("num_hidden_layers", n), ("sliding_window_pattern", period)):
        if configs.typed(f"config.json: {name}", 0, value) < 1:
            raise ConfigError(f"config.json: {name}={value}: must be 1 or more")
    types = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n)]
    rope = hf.pop("rope_parameters", {})
    parts = [rope.get(name, {}) for name in KINDS] if isinstance(rope, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not set(rope) <= set(KINDS):
        raise ConfigError(f"config.json: rope_parameters={rope!r}: must have objects for "
                          "full_attention and sliding_attention")
    full, sliding = parts
    base = sliding.get("rope_theta", hf.pop("rope_local_base_freq", 10_000.0))
    if sliding.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope_parameters: sliding_attention={sliding!r}: llm_jax "
                          "has rope_type 'default' there")
    base = configs.typed("config.json: rope_local_base_freq", 0.0, base)
    local = f" rotary_base={base!r} rotary_scaling=none"
    hf = _read_layers(hf, hf.pop("sliding_window", 4096), types, local)
    scalar, head_dim = hf.pop("query_pre_attn_scalar", 256), hf.get("head_dim", 256)
    scalar = configs.typed("config.json: query_pre_attn_scalar", 0.0, scalar)
    if scalar <= 0:
        raise ConfigError(f"config.json: query_pre_attn_scalar={scalar}: must be above 0")
    hf["attention_scale"] = 0.0 if scalar == head_dim else scalar**-0.5
    return _read_rope(hf | {"rope_parameters": full}, names, 1e6)


def _write_gemma3(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = _write_layers(hf, model)
    layers = configs.layers(model, model.num_layers)
    of = lambda kind: [x for x, t in zip(layers, types, strict=True) if t == kind]
    full, sliding = of("full_attention") or layers, of("sliding_attention") or layers
    hf["rope_parameters.rope_theta"] = full[0].rotary_base
    hf["rope_parameters.rope_type"] = _BY_SCALING.get(full[0].rotary_scaling)
    scale, base = hf.pop("attention_scale"), sliding[0].rotary_base
    hf = _write_llama(hf, model)
    local = {"rope_theta": base, "rope_type": "default"}
    return hf | {
        "rope_parameters": {"full_attention": hf["rope_parameters"], "sliding_attention": local},
        "rope_local_base_freq": base,
        "layer_types": types,
        "sliding_window": window or 4096,
        "query_pre_attn_scalar": round(scale**-2) if scale else hf["head_dim"],
    }


_BY_SCALING = {ours: theirs for theirs, ours in _ROPE_TYPES.items()}
GEMMA3 = dataclasses.replace(
    LLAMA,
    name="gemma3_text",
    model=LIKE_LLAMA | {
        "qk_norm": True, "norm_place": "sandwich", "norm_zero_centered": True,
        "scale_embeddings": True,
    },
    keys=(
        *_llama_keys(
            vocab_size=262208, max_position_embeddings=131072, hidden_size=2304,
            num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            intermediate_size=9216, hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        ), *LAYERS,
        Key("attention_scale", "attention_scale"),
    ),
    fixed=ROPE_FIXED | {
        "attention_bias": (False,),
        "final_logit_softcapping": (None,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
    },
    modules=LLAMA.modules | _in_layers(QK_NORMS | {
        "attention_norm_out": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_norm_out": "post_feedforward_layernorm",
    }),
    classes={"lm": "Gemma3ForCausalLM"},
    read=_read_gemma3,
    write=_write_gemma3,
)  # fmt: skip

# BERT and those that follow from it.
POST_NORM = {
    "kind": "encoder",
    "norm_place": "post",
    "norm_epsilon": 1e-12,
    "embed_norm": True,
    "head": "none",
}
BERT_SIZES = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def _bert_keys(**defaults: Any) -> tuple[Key, ...]:
    default = BERT_SIZES | defaults
    return (
        Key("vocab_size", "vocab_size", default["vocab_size"]),
        Key("max_position_embeddings", "max_length", 512),
        Key("type_vocab_size", "type_vocab_size", 2),
        Key("hidden_size", "embed_dim", default["hidden_size"]),
        Key("num_hidden_layers", "num_layers", default["num_hidden_layers"]),
        Key("num_attention_heads", "num_heads", default["num_attention_heads"]),
        Key("intermediate_size", "mlp_dim", default["intermediate_size"]),
        Key("hidden_act", "activation", default["hidden_act"], ACTIVATIONS),
        Key("layer_norm_eps", "norm_epsilon", 1e-12),
        Key("hidden_dropout_prob", "dropout", default["hidden_dropout_prob"]),
        Key("attention_probs_dropout_prob", "attention_dropout",
            default["attention_probs_dropout_prob"]),
        Key("initializer_range", "initializer_range", 0.02),
    )  # fmt: skip


BERT_IDS = {"pad_token_id": "pad_id"}
BERT_FIXED = {
    "tie_word_embeddings": (True,),
    "position_embedding_type": (None, "absolute"),
}


def _write_types(hf: dict, model: ConfigDict) -> dict:
    if not hf["type_vocab_size"]:
        raise ConfigError("model.type_vocab_size=0: this family needs 1 or more")
    return hf


def _embeddings(name: str) -> dict[str, str]:
    return {
        "embed": f"{name}.embeddings.word_embeddings",
        "encoder/embeddings/positions": f"{name}.embeddings.position_embeddings",
        "encoder/embeddings/types": f"{name}.embeddings.token_type_embeddings",
        "encoder/embeddings/norm": f"{name}.embeddings.LayerNorm",
    }


def _bert_modules(name: str) -> dict[str, str]:
    return _embeddings(name) | block(
        "encoder", name + ".encoder.layer.{}",
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense", "attention.output.LayerNorm output.LayerNorm",
    )  # fmt: skip


def _classes(name: str) -> dict[str, str]:
    """Their classes of the heads that are not of pretraining."""
    heads = {"sequence": "SequenceClassification", "token": "TokenClassification",
             "span": "QuestionAnswering"}  # fmt: skip
    return {head: f"{name}For{task}" for head, task in heads.items()} | {"none": f"{name}Model"}


def _with_dense(dense: str, classifier: str) -> dict[str, dict[str, str]]:
    """As _ONE_CLASSIFIER, where a dense layer stands before the classifier of sequences."""
    return _ONE_CLASSIFIER | {"sequence": {"pooler/dense": dense, "sequence": classifier}}


BERT = Family(
    name="bert",
    model=POST_NORM,
    ids=BERT_IDS,
    keys=_bert_keys(),
    fixed=BERT_FIXED,
    prefix="bert.",
    modules=_bert_modules("bert") | {
        "pooler/dense": "bert.pooler.dense",
        "transform/dense": "cls.predictions.transform.dense",
        "transform/norm": "cls.predictions.transform.LayerNorm",
        "output_bias": "cls.predictions.bias",
        "sequence": "cls.seq_relationship",
    },
    heads={
        "head": {
            "cls.predictions.": "mlm", "cls.seq_relationship.": "sequence",
            "classifier.": classifies, "qa_outputs.": "span",
        },
        "pooler": {
            "cls.seq_relationship.": True, "classifier.": lambda hf: classifies(hf) == "sequence",
            "bert.pooler.": True,
        },
        "num_labels": {"cls.seq_relationship.": 2},
    },
    by_head=_ONE_CLASSIFIER,
    classes=_classes("Bert") | {"mlm,sequence": "BertForPreTraining", "mlm": "BertForMaskedLM"},
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        # Next sentence alone (BertForNextSentencePrediction) is a classifier like another.
        "cls.seq_relationship.weight": "classifier.weight",
        "cls.seq_relationship.bias": "classifier.bias",
    },
    write=_write_types,
)  # fmt: skip


def _read_offset(hf: dict, names: Collection[str]) -> dict:
    """RoBERTa counts positions from behind the padding id, in a table longer by as many."""
    pad, length = hf.get("pad_token_id", 1), hf.get("max_position_embeddings", 512)
    for name, value in (("pad_token_id", pad), ("max_position_embeddings", length)):
        configs.typed(f"config.json: {name}", 0, value)
    if not 0 <= pad < length - 1:
        raise ConfigError(f"config.json: pad_token_id={pad}: roberta counts positions from it, and "
                          f"has max_position_embeddings={length}")
    return hf | {"position_offset": pad + 1, "max_position_embeddings": length - pad - 1}


def _write_offset(hf: dict, model: ConfigDict) -> dict:
    offset = hf.pop("position_offset")
    if offset < 1:
        raise ConfigError(f"model.position_offset={offset}: roberta needs 1 or more (published: 2)")
    length = hf["max_position_embeddings"] + offset
    return _write_types(hf | {"pad_token_id": offset - 1, "max_position_embeddings": length}, model)


def _behind_padding(model: ConfigDict, params: Any, tokenizer: Tokenizer) -> tuple:
    """Moves the rows of positions in use to where transformers looks: behind the padding id.

    It counts the tokens that are not padding; a real token of that id would shift all that follow.
    """
    pad, shift = tokenizer.pad_id, model.position_offset
    if pad in (tokenizer.bos_id, tokenizer.eos_id):
        raise ConfigError(f"roberta counts positions from its padding token, and id {pad} of this "
                          "tokenizer also begins or ends a text")
    if pad + 1 == shift:
        return model, params
    model = ConfigDict(model.to_dict() | {"position_offset": pad + 1})
    encoder = params["encoder"]
    embeddings = encoder["embeddings"]
    rows = np.asarray(embeddings["positions"]["embedding"])[shift:]
    table = {"embedding": np.pad(rows, [(pad + 1, 0), (0, 0)])}
    encoder = {**encoder, "embeddings": {**embeddings, "positions": table}}
    return model, {**params, "encoder": encoder}


ROBERTA = Family(
    name="roberta",
    model=POST_NORM,
    keys=(*_bert_keys(vocab_size=50265), Key("position_offset", "position_offset")),
    fixed=BERT_FIXED,
    prefix="roberta.",
    modules=_bert_modules("roberta") | {
        "pooler/dense": "roberta.pooler.dense",
        "transform/dense": "lm_head.dense",
        "transform/norm": "lm_head.layer_norm",
        "output_bias": "lm_head.bias",
    },
    heads={
        "head": {
            "lm_head.": "mlm", "classifier.dense.": "sequence", "classifier.weight": "token",
            "qa_outputs.": "span",
        },
        "pooler": {"roberta.pooler.": True, "classifier.dense.": True},
    },
    by_head=_with_dense("classifier.dense", "classifier.out_proj"),
    head_activation="gelu",
    classes=_classes("Roberta") | {"mlm": "RobertaForMaskedLM"},
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    read=_read_offset,
    write=_write_offset,
    place=_behind_padding,
)  # fmt: skip

DISTILBERT = Family(
    name="distilbert",
    model=POST_NORM | {"pooler_activation": "relu"},
    ids=BERT_IDS,
    keys=(
        Key("vocab_size", "vocab_size", 30522),
        Key("max_position_embeddings", "max_length", 512),
        Key("dim", "embed_dim", 768),
        Key("n_layers", "num_layers", 6),
        Key("n_heads", "num_heads", 12),
        Key("hidden_dim", "mlp_dim", 3072),
        Key("activation", "activation", "gelu", ACTIVATIONS),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("initializer_range", "initializer_range", 0.02),
    ),
    fixed={"tie_word_embeddings": (True,)},
    synonyms={
        "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"
    },
    prefix="distilbert.",
    modules=_embeddings("distilbert") | {
        "transform/dense": "vocab_transform",
        "transform/norm": "vocab_layer_norm",
        "output_bias": "vocab_projector.bias",
    } | block(
        "encoder", "distilbert.transformer.layer.{}",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
        "ffn.lin1 ffn.lin2", "sa_layer_norm output_layer_norm",
    ),
    heads={
        "head": {
            "vocab_": "mlm", "pre_classifier.": "sequence", "classifier.": classifies,
            "qa_outputs.": "span",
        },
        "pooler": {"pre_classifier.": True},
    },
    by_head=_with_dense("pre_classifier", "classifier"),
    classes=_classes("DistilBert") | {"mlm": "DistilBertForMaskedLM"},
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)  # fmt: skip

ELECTRA = Family(
    name="electra",
    model=POST_NORM | {"pooler_activation": "gelu"},
    ids=BERT_IDS,
    keys=(
        *_bert_keys(hidden_size=256, num_attention_heads=4, intermediate_size=1024),
        Key("embedding_size", "embedding_dim", 128),
    ),
    fixed=BERT_FIXED,
    prefix="electra.",
    modules=_bert_modules("electra") | {
        "encoder/embeddings/projection": "electra.embeddings_project",
        "transform/dense": "generator_predictions.dense",
        "transform/norm": "generator_predictions.LayerNorm",
        "output_bias": "generator_lm_head.bias",
        "detection/dense": "discriminator_predictions.dense",
        "detection/score": "discriminator_predictions.dense_prediction",
    },
    heads={
        "head": {
            "generator_": "mlm", "discriminator_predictions.": "detection",
            "classifier.dense.": "sequence", "classifier.weight": "token", "qa_outputs.": "span",
        },
        "pooler": {"classifier.dense.": True},
    },
    by_head=_with_dense("classifier.dense", "classifier.out_proj"),
    head_activation="gelu",
    classes=_classes("Electra")
    | {"mlm": "ElectraForMaskedLM", "detection": "ElectraForPreTraining"},
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    write=_write_types,
)  # fmt: skip


def _read_albert(hf: dict, names: Collection[str]) -> dict:
    if hf.get("embedding_size", 128) == hf.get("hidden_size", 4096):
        raise ConfigError(f"config.json: embedding_size={hf.get('embedding_size', 128)} equals "
                          "hidden_size; llm_jax has no projection between embeddings of the "
                          "model's own width")
    return hf


ALBERT = Family(
    name="albert",
    model=POST_NORM | {"share_layers": True},
    keys=(
        *_bert_keys(
            vocab_size=30000, hidden_size=4096, num_attention_heads=64, intermediate_size=16384,
            hidden_act="gelu_new", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        Key("embedding_size", "embedding_dim", 128),
    ),
    fixed=BERT_FIXED | {"num_hidden_groups": (1,), "inner_group_num": (1,)},
    prefix="albert.",
    modules=_embeddings("albert") | {
        "encoder/embeddings/projection": "albert.encoder.embedding_hidden_mapping_in",
        "pooler/dense": "albert.pooler",
        "transform/dense": "predictions.dense",
        "transform/norm": "predictions.LayerNorm",
        "output_bias": "predictions.bias",
        "sequence": "sop_classifier.classifier",
    } | block(
        "encoder", "albert.encoder.albert_layer_groups.0.albert_layers.0",
        "attention.query attention.key attention.value attention.dense", "ffn ffn_output",
        "attention.LayerNorm full_layer_layer_norm",
    ),
    heads={
        "head": {
            "predictions.": "mlm", "sop_classifier.": "sequence", "classifier.": classifies,
            "qa_outputs.": "span",
        },
        "pooler": {
            "sop_classifier.": True, "classifier.": lambda hf: classifies(hf) == "sequence",
            "albert.pooler.": True,
        },
        "num_labels": {"sop_classifier.": 2},
    },
    by_head=_ONE_CLASSIFIER,
    classes=_classes("Albert")
    | {"mlm,sequence": "AlbertForPreTraining", "mlm": "AlbertForMaskedLM"},
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    read=_read_albert,
    write=_write_types,
)  # fmt: skip


def _read_t5(hf: dict, names: Collection[str]) -> dict:
    """Untied once meant unscaled; transformers 5 ties whatever has no matrix of its own."""
    scaled = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
    tied = scaled or "lm_head.weight" not in names
    said = hf.get("feed_forward_proj", "relu")
    # Two entries that transformers derives from the one above, and that overrule it where given.
    gated, _, function = said.rpartition("-") if isinstance(said, str) else ("", "", said)
    derived = {
        "is_gated_act": gated == "gated",
        "dense_act_fn": "gelu_new" if said == "gated-gelu" else function,
    }
    for name, value in derived.items():
        if hf.get(name, value) != value:
            raise ConfigError(f"config.json: {name}={hf[name]!r} and feed_forward_proj={said!r} "
                              "differ")
    return hf | {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


def _write_t5(hf: dict, model: ConfigDict) -> dict:
    """transformers 4 scales what is tied, and nothing else."""
    if hf["scale_decoder_outputs"] and not hf["tie_word_embeddings"]:
        raise ConfigError("model.scale_output=True with model.tie_embeddings=False: t5 scales its "
                          "outputs where it ties them")
    return hf | {"tie_word_embeddings": hf["scale_decoder_outputs"]}


def _t5_blocks(mlp: str) -> dict[str, str]:
    under = lambda module, names: " ".join(f"layer.{module}.{name}" for name in names.split())
    own, cross = under("0.SelfAttention", "q k v o"), under("1.EncDecAttention", "q k v o")
    wide = lambda layer: under(f"{layer}.DenseReluDense", mlp)
    norms = "layer.0.layer_norm layer.1.layer_norm"
    return block("encoder", "encoder.block.{}", own, wide(1), norms) | block(
        "decoder", "decoder.block.{}", own, wide(2), f"{norms} layer.2.layer_norm", cross
    )


T5 = Family(
    name="t5",
    model={
        "kind": "encoder_decoder",
        "norm": "rmsnorm",
        "use_bias": False,
        "positions": "relative",
        "attention_scale": 1.0,
        "init": "fan_in",
    },
    keys=(
        Key("vocab_size", "vocab_size", 32128),
        Key("n_positions", "max_length", 512),
        Key("d_model", "embed_dim", 512),
        Key("d_kv", "head_dim", 64),
        Key("d_ff", "mlp_dim", 2048),
        Key("num_layers", "num_layers", 6),
        Key("num_decoder_layers", "num_decoder_layers"),
        Key("num_heads", "num_heads", 8),
        Key("relative_attention_num_buckets", "relative_buckets", 32),
        Key("relative_attention_max_distance", "relative_max_distance", 128),
        Key("feed_forward_proj", "activation", "relu", {
            "relu": "relu",
            "gelu": "gelu",
            "gelu_new": "gelu_tanh",
            "silu": "silu",
            "gated-gelu": "geglu_tanh",
            "gated-silu": "swiglu",
            "gated-relu": "reglu",
        }),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-6),
        Key("dropout_rate", "dropout", 0.1),
        Key("dropout_rate", "attention_dropout", 0.1),
        Key("dropout_rate", "mlp_dropout", 0.1),
        Key("dropout_rate", "final_dropout", 0.1),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Key("scale_decoder_outputs", "scale_output", True),
    ),
    fixed={"is_encoder_decoder": (True,)},
    synonyms={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    modules={
        "embed": "shared",
        "encoder/relative_bias":
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder/relative_bias":
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder/final_norm": "encoder.final_layer_norm",
        "decoder/final_norm": "decoder.final_layer_norm",
        "output": "lm_head.weight",
    } | _t5_blocks("wi wo"),
    gated_modules=_t5_blocks("wi_0 wi_1 wo"),
    classes={"lm": "T5ForConditionalGeneration"},
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    dropped=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    ids=TOKEN_IDS | {"decoder_start_token_id": "bos_id"},
    specials=tuple(f"<extra_id_{i}>" for i in reversed(range(100))),
    read=_read_t5,
    write=_write_t5,
)  # fmt: skip

MARIAN = Family(
    name="marian",
    model={"kind": "encoder_decoder", "norm_place": "post", "positions": "sinusoidal"},
    keys=(
        Key("vocab_size", "vocab_size", 58101),
        Key("decoder_vocab_size", "vocab_size"),
        Key("max_position_embeddings", "max_length", 1024),
        Key("d_model", "embed_dim", 1024),
        Key("encoder_layers", "num_layers", 12),
        Key("decoder_layers", "num_decoder_layers", 12),
        Key("encoder_attention_heads", "num_heads", 16),
        Key("decoder_attention_heads", "num_heads", 16),
        Key("encoder_ffn_dim", "mlp_dim", 4096),
        Key("decoder_ffn_dim", "mlp_dim", 4096),
        Key("activation_function", "activation", "gelu", ACTIVATIONS),
        Key("scale_embedding", "scale_embeddings", False),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("activation_dropout", "mlp_dropout", 0.0),
        Key("init_std", "initializer_range", 0.02),
    ),
    fixed={
        "is_encoder_decoder": (True,),
        "tie_word_embeddings": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "normalize_before": (None, False),
        "normalize_embedding": (None, False),
        "add_final_layer_norm": (None, False),
        "static_position_embeddings": (None, True),
    },
    synonyms={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    prefix="model.",
    modules={"embed": "model.shared", "output_bias": "final_logits_bias"}
    | block(
        "encoder", "model.encoder.layers.{}",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj", "fc1 fc2",
        "self_attn_layer_norm final_layer_norm",
    )
    | block(
        "decoder", "model.decoder.layers.{}",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj", "fc1 fc2",
        "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm",
        "encoder_attn.q_proj encoder_attn.k_proj encoder_attn.v_proj encoder_attn.out_proj",
    ),
    classes={"lm": "MarianMTModel"},
    copies={
        "lm_head.weight": "model.shared.weight",
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    dropped=(r"model\.(en|de)coder\.embed_positions\.weight",),
    heads={"output_bias": {"final_logits_bias": True}},
    if_zero=("final_logits_bias",),
    units={"final_logits_bias": 0},
    ids=TOKEN_IDS | {"decoder_start_token_id": "bos_id"},
    # Else transformers ends whatever is cut short with an eos that the model has not written.
    write=lambda hf, model: hf | {"forced_eos_token_id": None},
)  # fmt: skip

_LOCAL, _LSH = "chunked", "lsh"
_DEFAULT = ["local", "lsh"] * 3


def _read_reformer(hf: dict, names: Collection[str]) -> dict:
    """Their list of layers as our pattern, and no axes where positions have none."""
    kinds = hf.get("attn_layers", _DEFAULT)
    if not kinds or not isinstance(kinds, list) or not {"local", "lsh"}.issuperset(kinds):
        raise ConfigError(f"config.json: attn_layers={kinds!r}: lists 'local' and 'lsh' layers")
    layers = [{"local": _LOCAL}.get(kind, kind) for kind in kinds]
    n = len(layers)
    period = next(p for p in range(1, n + 1) if layers == layers[:p] * (n // p))
    if hf.get("num_hidden_layers", n) != n:
        raise ConfigError(f"config.json: num_hidden_layers={hf['num_hidden_layers']!r} and the {n} "
                          "entries of attn_layers differ")
    hf |= {"attention": ",".join(layers[:period]), "attn_layers": n}
    hf.setdefault("is_decoder", False)
    buckets = hf.get("num_buckets", ())
    buckets = (buckets,) if isinstance(buckets, int) else buckets
    hf["num_buckets"] = configs.typed("config.json: num_buckets", (), buckets)
    if not hf.get("axial_pos_embds", True):
        hf |= {"axial_pos_shape": (), "axial_pos_embds_dim": ()}
    return hf


def _write_reformer(hf: dict, model: ConfigDict) -> dict:
    kinds, n = hf.pop("attention").split(","), hf.pop("attn_layers")
    if not {_LOCAL, _LSH}.issuperset(kinds):
        raise ConfigError(f"model.attention={','.join(kinds)!r}: reformer has {_LOCAL} and {_LSH} "
                          "layers")
    hf["attn_layers"] = [{_LOCAL: "local"}.get(kind, kind) for kind in kinds] * (n // len(kinds))
    buckets = list(hf.pop("num_buckets"))
    hf["num_buckets"] = buckets[0] if len(buckets) == 1 else buckets or None
    axes = ("axial_pos_shape", "axial_pos_embds_dim")
    axial = hf["axial_pos_embds"]
    return {k: v for k, v in hf.items() if axial or k not in axes}


REFORMER = Family(
    name="reformer",
    model={
        "reversible": True,
        "attention_bias": False,
        "output_bias": True,
        "tie_embeddings": False,
    },
    keys=(
        Key("vocab_size", "vocab_size", 320),
        Key("max_position_embeddings", "max_length", 4096),
        Key("hidden_size", "embed_dim", 256),
        Key("attn_layers", "num_layers"),
        Key("num_attention_heads", "num_heads", 12),
        Key("attention_head_size", "head_dim", 64),
        Key("feed_forward_size", "mlp_dim", 512),
        Key("hidden_act", "activation", "relu", ACTIVATIONS),
        Key("layer_norm_eps", "norm_epsilon", 1e-12),
        Key("attention", "attention"),
        Key("local_attn_chunk_length", "window", 64),
        Key("lsh_attn_chunk_length", "lsh_chunk", 64),
        Key("num_hashes", "lsh_hashes", 1),
        Key("num_buckets", "lsh_buckets", ()),
        Key("axial_pos_embds", "positions", True, {True: "axial", False: "learned"}),
        Key("axial_pos_shape", "axial_shape", (64, 64)),
        Key("axial_pos_embds_dim", "axial_dims", (64, 192)),
        Key("hidden_dropout_prob", "dropout", 0.05),
        Key("hidden_dropout_prob", "mlp_dropout", 0.05),
        Key("hidden_dropout_prob", "final_dropout", 0.05),
        Key("local_attention_probs_dropout_prob", "attention_dropout", 0.05),
        Key("initializer_range", "initializer_range", 0.02),
    ),
    fixed={
        "is_decoder": (True,),
        "tie_word_embeddings": (False,),
        "local_num_chunks_before": (1,),
        "local_num_chunks_after": (0,),
        "lsh_num_chunks_before": (1,),
        "lsh_num_chunks_after": (0,),
    },
    prefix="reformer.",
    modules={
        "embed": "reformer.embeddings.word_embeddings",
        "decoder/embeddings/positions": "reformer.embeddings.position_embeddings.embedding",
        "decoder/embeddings/rows/embedding": "reformer.embeddings.position_embeddings.weights.0",
        "decoder/embeddings/columns/embedding":
            "reformer.embeddings.position_embeddings.weights.1",
        "decoder/final_norm": "reformer.encoder.layer_norm",
        "output": "lm_head.decoder.weight",
        "output_bias": "lm_head.decoder.bias",
    } | block(
        "decoder", "reformer.encoder.layers.{}",
        "attention.self_attention.query attention.self_attention.key "
        "attention.self_attention.value attention.output.dense",
        "feed_forward.dense.dense feed_forward.output.dense",
        "attention.layer_norm feed_forward.layer_norm",
    ),
    by_kind={"lsh": {
        "decoder/stack/layers/block/attention/query":
            "reformer.encoder.layers.{}.attention.self_attention.query_key",
    }},
    units={
        "reformer.embeddings.position_embeddings.weights.0": 1,
        "reformer.embeddings.position_embeddings.weights.1": 0,
    },
    classes={"lm": "ReformerModelWithLMHead"},
    # transformers 4 has one bias under both names; version 5 has two and adds the decoder's.
    aliases={"lm_head.bias": "lm_head.decoder.bias"},
    dropped=(r".*\.(self_)?mask_value_float(16|32)",),
    read=_read_reformer,
    write=_write_reformer,
)  # fmt: skip

# In the order in which a config is tried; the first that expresses it is its family.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        GPT2, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, OLMO2, GEMMA3, BERT, ROBERTA, DISTILBERT,
        ELECTRA, ALBERT, T5, MARIAN, REFORMER,
    )
}


def get(name: Any) -> Family:
    """Returns the family of that name; ConfigError lists those there are."""
    if name not in FAMILIES:
        raise ConfigError(f"config.json: model_type={name!r} is not in llm_jax; there are "
                          f"{', '.join(FAMILIES)}")
    return FAMILIES[name]

"""Encoder-decoders: T5 and Marian."""

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.hub.families.parts import block, keys
from llm_jax.hub.family import TOKEN_IDS, Family, Key


def _read_t5(hf: dict, names: Collection[str]) -> dict:
    """Untied models are unscaled; transformers 5 ties models without an output matrix."""
    scaled = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
    tied = scaled or "lm_head.weight" not in names
    ffn = hf.get("feed_forward_proj", "relu")
    # Two entries that transformers derives from the one above unless they are given.
    gated, _, function = ffn.rpartition("-") if isinstance(ffn, str) else ("", "", ffn)
    derived = {
        "is_gated_act": gated == "gated",
        "dense_act_fn": "gelu_new" if ffn == "gated-gelu" else function,
    }
    for name, value in derived.items():
        if hf.get(name, value) != value:
            raise ConfigError(f"config.json: {name}={hf[name]!r} and feed_forward_proj={ffn!r} "
                              "differ")
    return hf | {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


def _write_t5(hf: dict, model: ConfigDict) -> dict:
    """transformers 4 scales outputs if and only if they are tied."""
    if hf["scale_decoder_outputs"] and not hf["tie_word_embeddings"]:
        raise ConfigError("model.scale_output=True with model.tie_embeddings=False: t5 scales only "
                          "tied outputs")
    return hf | {"tie_word_embeddings": hf["scale_decoder_outputs"]}


def _t5_blocks(mlp: str, room: str = "DenseReluDense") -> dict[str, str]:
    under = lambda module, names: " ".join(f"layer.{module}.{name}" for name in names.split())
    own, cross = under("0.SelfAttention", "q k v o"), under("1.EncDecAttention", "q k v o")
    wide = lambda layer: under(f"{layer}.{room}", mlp)
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
        *keys(
            vocab_size=32128, n_positions=512, d_model=512, d_kv=64, d_ff=2048, num_layers=6,
            num_decoder_layers=None, num_heads=8, relative_attention_num_buckets=32,
            relative_attention_max_distance=128, layer_norm_epsilon=1e-6, tie_word_embeddings=True,
        ),
        Key("feed_forward_proj", "activation", "relu", {
            "relu": "relu",
            "gelu": "gelu",
            "gelu_new": "gelu_tanh",
            "silu": "silu",
            "gated-gelu": "geglu_tanh",
            "gated-silu": "swiglu",
            "gated-relu": "reglu",
        }),
        *(Key("dropout_rate", ours, 0.1)
          for ours in ("dropout", "attention_dropout", "mlp_dropout", "final_dropout")),
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

def _read_switch(hf: dict, names: Collection[str]) -> dict:
    """Every n-th layer has experts; n follows from the number of sparse layers."""
    n, steps, shown = hf.get("num_layers", 12), set(), []
    for name in ("encoder_sparse_step", "decoder_sparse_step"):  # derived
        hf.pop(name, None)
    layers = hf.pop("num_decoder_layers", 12)
    hf["num_decoder_layers"] = n if layers is None else layers
    for side, of in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        name = f"num_sparse_{side}_layers"
        sparse = configs.typed(f"config.json: {name}", 0, hf.pop(name, 3))
        layers = configs.typed(f"config.json: {of}", 0, hf.get(of, n))
        steps.add(layers // sparse if sparse > 0 else layers)
        shown.append(f"{name}={sparse} of {of}={layers}")
    if len(steps) > 1 or not steps <= {1, 2}:  # for 3, their first sparse layer differs
        raise ConfigError(f"config.json: {', '.join(shown)}: llm_jax supports them in every layer "
                          "or every second one")
    tied = hf.get("tie_word_embeddings", True)
    return hf | {"expert_every": steps.pop(), "scale_decoder_outputs": tied}


def _write_switch(hf: dict, model: ConfigDict) -> dict:
    if hf.pop("scale_decoder_outputs") != hf["tie_word_embeddings"]:
        raise ConfigError(f"model.scale_output={model.scale_output}: switch_transformers scales "
                          "outputs if and only if they are tied")
    every = hf.pop("expert_every")
    return hf | {
        "num_sparse_encoder_layers": hf["num_layers"] // every,
        "num_sparse_decoder_layers": hf["num_decoder_layers"] // every,
    }


_SIZES = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
SWITCH = dataclasses.replace(
    T5,
    name="switch_transformers",
    model=T5.model | {"experts_per_token": 1},
    keys=(
        *(key._replace(default=_SIZES.get(key.theirs, key.default)) for key in T5.keys
          if key.theirs != "feed_forward_proj"),
        Key("dense_act_fn", "activation", "relu", {
            "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu",
        }),
        *keys(num_experts=8, router_aux_loss_coef=0.001, router_z_loss_coef=0.001),
        Key("expert_every", "expert_every"),
        Key("expert_capacity", "expert_slots", 64),
    ),
    fixed=T5.fixed | {"router_bias": (False,), "router_dtype": ("float32",)},
    nulls=("num_decoder_layers",),
    modules=T5.modules | _t5_blocks("wi wo", "mlp"),
    gated_modules={},
    experts={
        f"{stack}/stack/layers/block/mlp/{ours}":
            f"{stack}.block.{{}}.layer.{i}.mlp.{theirs}.weight"
        for stack, i in (("encoder", 1), ("decoder", 2))
        for ours, theirs in (("router", "router.classifier"), ("up", "experts.expert_{}.wi"),
                             ("down", "experts.expert_{}.wo"))
    },
    classes={"lm": "SwitchTransformersForConditionalGeneration"},
    read=_read_switch,
    write=_write_switch,
)  # fmt: skip

MARIAN = Family(
    name="marian",
    model={"kind": "encoder_decoder", "norm_place": "post", "positions": "sinusoidal"},
    keys=(
        *keys(
            vocab_size=58101, max_position_embeddings=1024, d_model=1024, encoder_layers=12,
            decoder_layers=12, encoder_attention_heads=16, decoder_attention_heads=16,
            encoder_ffn_dim=4096, decoder_ffn_dim=4096, activation_function="gelu",
            scale_embedding=False, dropout=0.1, attention_dropout=0.0, activation_dropout=0.0,
            init_std=0.02,
        ),
        Key("decoder_vocab_size", "vocab_size"),
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
    if_zero=("final_logits_bias",),
    units={"final_logits_bias": 0},
    ids=TOKEN_IDS | {"decoder_start_token_id": "bos_id"},
    # Otherwise transformers appends an eos to truncated outputs.
    write=lambda hf, model: hf | {"forced_eos_token_id": None},
)  # fmt: skip

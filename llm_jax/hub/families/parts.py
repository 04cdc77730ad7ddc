"""Entries shared by several families."""

from collections.abc import Mapping
from typing import Any

from llm_jax.hub.family import Key

# Keys of config.model -> their names in config.json.
NAMES = {
    "vocab_size": "vocab_size",
    "type_vocab_size": "type_vocab_size",
    "max_length": "max_position_embeddings n_positions",
    "embed_dim": "hidden_size n_embd d_model dim",
    "embedding_dim": "embedding_size",
    "num_layers": "num_hidden_layers n_layer n_layers num_layers encoder_layers",
    "num_decoder_layers": "num_decoder_layers decoder_layers",
    "num_heads": "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
                 "decoder_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim d_kv attention_head_size qk_nope_head_dim",
    "latent_rotary": "qk_rope_head_dim",
    "latent_kv": "kv_lora_rank",
    "latent_query": "q_lora_rank",
    "mlp_dim": "intermediate_size n_inner hidden_dim d_ff feed_forward_size encoder_ffn_dim "
               "decoder_ffn_dim moe_intermediate_size",
    "activation": "hidden_act hidden_activation activation_function activation",
    "norm_epsilon": "layer_norm_eps layer_norm_epsilon norm_eps rms_norm_eps",
    "dropout": "hidden_dropout_prob dropout resid_pdrop embd_pdrop embedding_dropout",
    "attention_dropout": "attention_probs_dropout_prob attention_dropout attn_pdrop "
                         "local_attention_probs_dropout_prob",
    "mlp_dropout": "mlp_dropout activation_dropout",
    "initializer_range": "initializer_range init_std",
    "tie_embeddings": "tie_word_embeddings",
    "scale_embeddings": "scale_embedding",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
    "rotary_interleaved": "rope_interleave",
    "num_experts": "num_local_experts num_experts n_routed_experts",
    "shared_experts": "n_shared_experts",
    "experts_per_token": "num_experts_per_tok",
    "router_normalized": "norm_topk_prob",
    "router_scale": "routed_scaling_factor",
    "router_groups": "n_group",
    "router_top_groups": "topk_group",
    "router_balance": "router_aux_loss_coef aux_loss_alpha",
    "router_z": "router_z_loss_coef",
}  # fmt: skip
OURS = {theirs: ours for ours, names in NAMES.items() for theirs in names.split()}
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


def keys(activations: Mapping[str, str] = ACTIVATIONS, **defaults: Any) -> tuple[Key, ...]:
    """Returns the keys of a family, with names from NAMES.

    Args:
      activations: theirs -> ours; the family's default is preferred in writing.
      defaults: of their config class; None: derived from others; ...: no such entry.
    """
    values = lambda theirs: {theirs: activations[theirs]} | activations
    return tuple(
        Key(name, OURS[name], default, values(default) if OURS[name] == "activation" else None)
        for name, default in defaults.items()
        if default is not ...
    )


def block(
    stack: str, theirs: str, attention: str, mlp: str, norms: str, cross: str = ""
) -> dict[str, str]:
    """Returns the modules of a block: ours -> theirs, with '{}' for the layer.

    Args:
      stack: encoder or decoder.
      theirs: prefix of the names of a layer.
      attention, cross: names of the query, key, value and output projections.
      mlp: names of the gate projection, if any, and the up and down projections.
      norms: names of the norms of the sublayers, in order.
    """
    ours = [f"{part}/{name}" for part in ("attention", *["cross_attention"] * bool(cross))
            for name in ("query", "key", "value", "out")]  # fmt: skip
    ours += ["mlp/gate", "mlp/up", "mlp/down"][-len(mlp.split()) :]
    ours += ["attention_norm", *["cross_norm"] * bool(cross), "mlp_norm"]
    names = " ".join((attention, cross, mlp, norms)).split()
    pairs = zip(ours, names, strict=True)
    return {f"{stack}/stack/layers/block/{k}": f"{theirs}.{v}" for k, v in pairs}


ONE_CLASSIFIER = {
    "sequence": {"sequence": "classifier"}, "token": {"token": "classifier"},
    "span": {"span": "qa_outputs"},
}  # fmt: skip

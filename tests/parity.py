"""Models compared with transformers in PyTorch: same weights, same ragged batch, float32.

`CASES` lists the models. `compare` returns the differences of one model, and `train` those of 100
steps of AdamW.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from safetensors.numpy import load_file

from llm_jax import attention, hub, models
from llm_jax import config as configs
from llm_jax.attention import lsh
from llm_jax.hub.family import from_tensors, plan
from llm_jax.objectives.cross_entropy import cross_entropy
from llm_jax.train import groups, optimizer


class Case(NamedTuple):
    """One reference model: a class of transformers, its config's arguments, a batch's shape."""

    reference: str
    config: dict[str, Any]
    shape: tuple[int, int] = (3, 13)


def _bert(layers: int, embed: int, heads: int, mlp: int, vocab: int, **more) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": embed,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": 41,
    } | more


def _gpt2(layers: int, embed: int, heads: int, vocab: int, **more) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_embd": embed, "n_head": heads, "vocab_size": vocab}
    return sizes | {"n_positions": 41, "bos_token_id": 1, "eos_token_id": 2} | more


def _t5(layers: int, embed: int, heads: int, mlp: int, vocab: int, **more) -> dict[str, Any]:
    sizes = {"num_layers": layers, "d_model": embed, "num_heads": heads, "d_ff": mlp}
    return sizes | {"vocab_size": vocab, "d_kv": 8, "decoder_start_token_id": 0} | more


def _marian(layers: int, embed: int, heads: int, mlp: int, vocab: int, **more) -> dict[str, Any]:
    sizes = {"vocab_size": vocab, "d_model": embed, "max_position_embeddings": 41}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": heads}
        sizes |= {f"{side}_ffn_dim": mlp}
    # Not the padding id, as is usual: PyTorch gives that row of a table no gradient.
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    special |= {"forced_eos_token_id": 1}
    return sizes | special | {"scale_embedding": True, "activation_function": "relu"} | more


def _reformer(layers: list[str], embed: int, heads: int, vocab: int, **more) -> dict[str, Any]:
    sizes = {"attn_layers": layers, "hidden_size": embed, "num_attention_heads": heads}
    sizes |= {"attention_head_size": 7, "feed_forward_size": 50, "vocab_size": vocab}
    sizes |= {"max_position_embeddings": 48, "axial_pos_shape": (6, 8)}
    sizes |= {"axial_pos_embds_dim": (embed // 3, embed - embed // 3)}
    sizes |= {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "hash_seed": 11}
    # Dropout has to be off here: their layers have a gradient in training mode alone.
    off = ("hidden_dropout_prob", "local_attention_probs_dropout_prob")
    sizes |= dict.fromkeys((*off, "lsh_attention_probs_dropout_prob"), 0.0)
    return sizes | {"is_decoder": True, "use_cache": False} | more


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}

_LATENT = {
    "moe_intermediate_size": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "num_key_value_heads": 4,
}  # fmt: skip

CASES: dict[str, Case] = {
    "gpt2-a": Case("GPT2LMHeadModel", _gpt2(2, 24, 3, 61)),
    "gpt2-b": Case("GPT2LMHeadModel", _gpt2(3, 20, 5, 97, n_inner=33), (2, 37)),
    "gpt2-untied": Case("GPT2LMHeadModel", _gpt2(1, 14, 1, 53, tie_word_embeddings=False), (5, 7)),
    "llama-a": Case("LlamaForCausalLM", _bert(2, 24, 4, 33, 61)),
    "llama-gqa": Case(
        "LlamaForCausalLM",
        _bert(3, 30, 6, 37, 97, num_key_value_heads=2, head_dim=10, rope_parameters=LLAMA3),
        (2, 37),
    ),
    "llama-linear": Case(
        "LlamaForCausalLM",
        _bert(1, 18, 3, 20, 53, num_key_value_heads=1, rope_parameters=LINEAR,
              tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        (5, 7),
    ),
    "mistral-a": Case("MistralForCausalLM", _bert(2, 24, 4, 33, 61, sliding_window=5,
                                                  num_key_value_heads=2)),
    "mistral-full": Case("MistralForCausalLM", _bert(2, 24, 4, 33, 61, sliding_window=None,
                                                     num_key_value_heads=1, head_dim=10)),
    "mixtral": Case("MixtralForCausalLM", _bert(2, 24, 4, 20, 61, num_local_experts=4,
                                                num_key_value_heads=2)),
    "qwen2-a": Case("Qwen2ForCausalLM", _bert(2, 24, 4, 33, 61, num_key_value_heads=2)),
    "qwen2-windows": Case(
        "Qwen2ForCausalLM",
        _bert(5, 20, 5, 33, 97, num_key_value_heads=1, use_sliding_window=True, sliding_window=4,
              max_window_layers=2, tie_word_embeddings=True),
        (2, 37),
    ),
    "qwen3-a": Case("Qwen3ForCausalLM", _bert(3, 24, 4, 33, 61, num_key_value_heads=2,
                                              head_dim=10)),
    "olmo2-a": Case("Olmo2ForCausalLM", _bert(2, 24, 4, 33, 61, num_key_value_heads=2)),
    "gemma3-a": Case(
        "Gemma3ForCausalLM",
        _bert(8, 24, 4, 33, 61, num_key_value_heads=2, head_dim=10, sliding_window=4,
              sliding_window_pattern=3, query_pre_attn_scalar=25),
    ),
    "gemma3-long": Case(
        "Gemma3ForCausalLM",
        _bert(3, 20, 5, 33, 97, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
              sliding_window=6, layer_types=["full_attention", *["sliding_attention"] * 2],
              rope_parameters={"full_attention": LINEAR,
                               "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}),
        (2, 37),
    ),
    "gemma2-a": Case(
        "Gemma2ForCausalLM",
        _bert(4, 24, 4, 33, 61, num_key_value_heads=2, head_dim=10, sliding_window=4,
              query_pre_attn_scalar=25, attn_logit_softcapping=2.0, final_logit_softcapping=4.0),
    ),
    "olmo3-a": Case(
        "Olmo3ForCausalLM",
        _bert(5, 24, 4, 33, 61, num_key_value_heads=2, sliding_window=4,
              rope_parameters={"full_attention": YARN | {"attention_factor": 1.1},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}),
    ),
    "smollm3-a": Case("SmolLM3ForCausalLM", _bert(4, 24, 4, 33, 61, num_key_value_heads=2,
                                                  pad_token_id=0, no_rope_layer_interval=2)),
    "smollm3-windows": Case(
        "SmolLM3ForCausalLM",
        _bert(3, 20, 5, 33, 97, num_key_value_heads=1, pad_token_id=0, sliding_window=4,
              use_sliding_window=True, no_rope_layers=[1, 0, 0], rope_parameters=YARN),
        (2, 37),
    ),
    "phi3-a": Case("Phi3ForCausalLM", _bert(2, 24, 4, 33, 61, num_key_value_heads=2,
                                            pad_token_id=0, sliding_window=5)),
    "qwen3-moe": Case(
        "Qwen3MoeForCausalLM",
        _bert(3, 24, 4, 33, 61, num_key_value_heads=2, head_dim=10, moe_intermediate_size=12,
              num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1]),
    ),
    "qwen3-next": Case(
        "Qwen3NextForCausalLM",
        _bert(3, 24, 4, 33, 61, num_key_value_heads=2, head_dim=8, moe_intermediate_size=12,
              shared_expert_intermediate_size=12, num_experts=4, num_experts_per_tok=2,
              linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=5,
              linear_value_head_dim=6, full_attention_interval=3,
              rope_parameters={"rope_type": "default", "rope_theta": 50.0,
                               "partial_rotary_factor": 0.5}),
    ),
    "gpt-oss": Case(
        "GptOssForCausalLM",
        _bert(4, 24, 4, 20, 61, num_key_value_heads=2, head_dim=10, num_local_experts=4,
              num_experts_per_tok=2, sliding_window=4, rope_parameters=YARN | {"truncate": False}),
    ),
    "deepseek-v2": Case(
        "DeepseekV2ForCausalLM",
        _bert(2, 24, 4, 33, 61, **_LATENT, n_routed_experts=4, num_experts_per_tok=2,
              q_lora_rank=None),
    ),
    "deepseek-v2-groups": Case(
        "DeepseekV2ForCausalLM",
        _bert(3, 24, 4, 33, 61, **_LATENT, n_routed_experts=6, num_experts_per_tok=3, n_group=3,
              topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=3.0,
              first_k_dense_replace=1, q_lora_rank=12, rope_parameters=YARN),
        (2, 37),
    ),
    "deepseek-v3": Case(
        "DeepseekV3ForCausalLM",
        _bert(3, 24, 4, 33, 61, **_LATENT, n_routed_experts=8, num_experts_per_tok=3, n_group=4,
              topk_group=2, first_k_dense_replace=1, q_lora_rank=12,
              rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}),
    ),
    "mamba2-a": Case(
        "Mamba2ForCausalLM",
        {"num_hidden_layers": 2, "hidden_size": 24, "num_heads": 6, "head_dim": 8,
         "state_size": 5, "n_groups": 2, "vocab_size": 61, "chunk_size": 8, "pad_token_id": 0},
    ),
    "bert-a": Case("BertForPreTraining", _bert(2, 24, 3, 50, 61)),
    "bert-b": Case("BertForPreTraining", _bert(3, 20, 5, 33, 97, hidden_act="gelu_new"), (2, 37)),
    "bert-mlm": Case("BertForMaskedLM", _bert(1, 14, 1, 9, 53), (5, 7)),
    "bert-bare": Case("BertModel", _bert(2, 14, 2, 9, 53, type_vocab_size=3), (5, 7)),
    "roberta-a": Case("RobertaForMaskedLM", _bert(2, 24, 3, 50, 61, type_vocab_size=1)),
    "roberta-b": Case("RobertaForMaskedLM", _bert(3, 20, 5, 33, 97, pad_token_id=2), (2, 37)),
    "distilbert-a": Case(
        "DistilBertForMaskedLM",
        {"n_layers": 2, "dim": 24, "n_heads": 3, "hidden_dim": 50, "vocab_size": 61},
    ),
    "distilbert-b": Case(
        "DistilBertForMaskedLM",
        {"n_layers": 3, "dim": 20, "n_heads": 5, "hidden_dim": 33, "vocab_size": 97},
        (2, 37),
    ),
    "electra-generator-a": Case("ElectraForMaskedLM", _bert(2, 24, 3, 50, 61, embedding_size=10)),
    "electra-generator-b": Case(
        "ElectraForMaskedLM", _bert(3, 20, 5, 33, 97, embedding_size=20), (2, 37)
    ),
    "electra-a": Case("ElectraForPreTraining", _bert(2, 24, 3, 50, 61, embedding_size=10)),
    "electra-b": Case(
        "ElectraForPreTraining",
        _bert(3, 20, 5, 33, 97, embedding_size=20, hidden_act="gelu_new"),
        (2, 37),
    ),
    "albert-a": Case("AlbertForPreTraining", _bert(3, 24, 3, 50, 61, embedding_size=10)),
    "albert-b": Case(
        "AlbertForPreTraining",
        _bert(2, 20, 5, 33, 97, embedding_size=7, hidden_act="gelu"),
        (2, 37),
    ),
    "modernbert-a": Case(
        "ModernBertForMaskedLM",
        _bert(4, 24, 3, 33, 61, local_attention=6, pad_token_id=0, global_attn_every_n_layers=2),
    ),
    "t5-v1.0-a": Case("T5ForConditionalGeneration", _t5(2, 24, 3, 50, 61)),
    "t5-v1.0-b": Case(
        "T5ForConditionalGeneration",
        _t5(3, 20, 5, 33, 97, num_decoder_layers=1, relative_attention_num_buckets=10,
            relative_attention_max_distance=21),
        (2, 37),
    ),
    "t5-v1.1-a": Case(
        "T5ForConditionalGeneration",
        _t5(2, 24, 3, 50, 61, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "t5-v1.1-b": Case(
        "T5ForConditionalGeneration",
        _t5(1, 14, 5, 33, 97, feed_forward_proj="gated-silu", tie_word_embeddings=False),
        (2, 37),
    ),
    "switch": Case(
        "SwitchTransformersForConditionalGeneration",
        _t5(4, 24, 3, 50, 61, num_decoder_layers=2, num_sparse_encoder_layers=2,
            num_sparse_decoder_layers=1, num_experts=3, expert_capacity=3),
    ),
    "marian-a": Case("MarianMTModel", _marian(2, 24, 3, 50, 61)),
    "marian-b": Case(
        "MarianMTModel",
        _marian(3, 20, 5, 33, 97, decoder_layers=1, scale_embedding=False,
                activation_function="silu"),
        (2, 37),
    ),
    "reformer-local-a": Case("ReformerModelWithLMHead", _reformer(["local"] * 2, 24, 3, 61)),
    "reformer-lsh-a": Case(
        "ReformerModelWithLMHead",
        _reformer(["lsh"] * 2, 24, 3, 61, num_hashes=2, num_buckets=4),
    ),
    "reformer-b": Case(
        "ReformerModelWithLMHead",
        _reformer(["local", "lsh", "local", "lsh"], 20, 5, 97, num_hashes=3, num_buckets=[2, 4],
                  lsh_attn_chunk_length=8),
        (2, 37),
    ),
    "reformer-learned": Case(
        "ReformerModelWithLMHead",
        _reformer(["lsh"], 14, 1, 53, axial_pos_embds=False),
        (5, 7),
    ),
    "reformer-long": Case(
        "ReformerModelWithLMHead",
        _reformer(["lsh"] * 4, 48, 4, 211, num_hashes=4, num_buckets=[4, 8],
                  lsh_attn_chunk_length=16, max_position_embeddings=256,
                  axial_pos_shape=(16, 16)),
        (4, 256),
    ),
}  # fmt: skip

TRAINED = tuple(name for name in CASES if name.endswith("-a"))  # one of each family and head
HASHED = ("reformer-lsh-a", "reformer-long")  # of which `train_hashed` follows the buckets too

# Compiling takes longer than running here, and half as long without LLVM's optimisations.
QUICK = {"xla_backend_optimization_level": "0"}

def reference(case: Case, seed: int = 0) -> torch.nn.Module:
    """Returns the PyTorch model for evaluation, all of it random, norms and biases too."""
    torch.manual_seed(seed)
    kind = getattr(transformers, case.reference)
    model = kind(kind.config_class(attn_implementation="eager", **case.config))
    untied = case.reference.startswith("T5") and case.config.get("tie_word_embeddings") is False
    if untied:  # as published checkpoints of version 1.1 are, though their class now ties at birth
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer += 0.1 * torch.randn_like(buffer)
    return ready(model)


def ready(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the model in evaluation mode, with all that its family is meant to compute."""
    model.eval()
    if isinstance(model, transformers.ReformerPreTrainedModel):
        # Its layers have a gradient in training mode alone, in which the model takes no odd length.
        model.reformer.encoder.train()
        # One parameter in version 4; version 5 has two and adds the decoder's alone.
        model.lm_head.bias.data.copy_(model.lm_head.decoder.bias.data)
    return model


@contextlib.contextmanager
def rotations_of(seed: int | None) -> Iterator[None]:
    """Within it, our LSH layers hash by the rotations that theirs draw from config.hash_seed."""
    ours = attention.VARIANTS["lsh"]

    def decide(query, random, lsh_chunk, lsh_hashes, lsh_buckets):
        parts = lsh_buckets or lsh.factors(query.shape[1], lsh_chunk)
        torch.manual_seed(seed)  # as each of their layers does
        drawn = torch.randn((*query.shape[2:], lsh_hashes, sum(parts) // 2)).numpy()
        return lsh.assign(query, jnp.asarray(drawn), lsh_chunk, lsh_hashes, lsh_buckets)

    if seed is not None:
        attention.VARIANTS["lsh"] = dataclasses.replace(ours, decide=decide)
    try:
        yield
    finally:
        attention.VARIANTS["lsh"] = ours


def batch(case: Case, model: configs.ConfigDict, seed: int = 0) -> tuple[dict, dict]:
    """Returns one ragged batch twice: for transformers (torch) and for us (NumPy)."""
    rng = np.random.default_rng(seed)
    B, T = case.shape
    draw = lambda shape, low=3: rng.integers(low, model.vocab_size, shape)
    lengths = lambda n: np.r_[n, rng.integers(max(n // 3, 1), n, B - 1)]
    ragged = lambda n: (np.arange(n) < lengths(n)[:, None]).astype(np.int64)
    real = ragged(T)
    tokens = np.where(real, draw((B, T)), 0)
    theirs: dict[str, np.ndarray] = {"input_ids": tokens, "attention_mask": real}
    ours: dict[str, np.ndarray] = {"tokens": tokens, "segment_ids": real}
    if model.kind == "encoder_decoder":
        S = T // 2 + 3
        target_real = ragged(S)
        labels = np.where(target_real, draw((B, S)), -100)
        start = np.full((B, 1), case.config["decoder_start_token_id"])
        inputs = np.concatenate([start, np.maximum(labels[:, :-1], 0)], 1)
        theirs |= {"decoder_input_ids": inputs, "decoder_attention_mask": target_real}
        ours = {"encoder_tokens": tokens, "encoder_segment_ids": real}
        ours |= {"tokens": inputs, "segment_ids": target_real}
    elif model.kind == "decoder":
        labels = np.where(real, tokens, -100)
    elif "detection" in model.head:
        labels = rng.integers(0, 2, (B, T))
    else:
        labels = np.where(real & (rng.random((B, T)) < 0.5), draw((B, T)), -100)
        labels[:, 0] = tokens[:, 0]
    if model.head != "none":
        theirs["labels"] = labels
    if model.kind == "decoder":
        labels = np.concatenate([labels[:, 1:], np.full((B, 1), -100)], 1)
    if "detection" in model.head:
        ours |= {"labels": labels, "weights": real}
    else:
        ours |= {"targets": np.maximum(labels, 0), "weights": (labels >= 0).astype(np.float32)}
    if model.type_vocab_size:
        ours["types"] = theirs["token_type_ids"] = rng.integers(0, model.type_vocab_size, (B, T))
    if "sequence" in model.head:
        ours["classes"] = rng.integers(0, 2, B)
        name = "sentence_order_label" if "Albert" in case.reference else "next_sentence_label"
        theirs[name] = ours["classes"]
    kind = lambda name: np.float32 if name == "weights" else np.int32
    ours = {name: value.astype(kind(name)) for name, value in ours.items()}
    return {name: torch.as_tensor(value) for name, value in theirs.items()}, ours


def loss_of(outputs: models.Outputs, ours: dict) -> jax.Array:
    """The loss that the reference reports; for a bare encoder a sum that every output enters."""
    weights = ours["weights"]
    if "detection" in outputs.heads:
        each = optax.sigmoid_binary_cross_entropy(outputs.heads["detection"], ours["labels"])
        return (each * weights).sum() / weights.sum()
    if outputs.matrix is None:
        real = ours["segment_ids"][..., None]
        return (outputs.features**3 * real).sum() + (outputs.heads["pooled"]**3).sum()
    total, _ = cross_entropy(
        outputs.hidden, outputs.matrix, ours["targets"], weights, bias=outputs.bias,
        softcap=outputs.softcap,
    )
    total /= weights.sum()
    if "sequence" in outputs.heads:
        each = optax.softmax_cross_entropy_with_integer_labels(
            outputs.heads["sequence"], ours["classes"]
        )
        total += each.mean()
    return total


def run_reference(model: torch.nn.Module, inputs: dict) -> tuple[torch.Tensor, dict]:
    """Returns the loss, and outputs under our names for them."""
    out = model(**inputs, output_hidden_states=True)
    found = {
        "features": out.get("decoder_hidden_states", out.get("hidden_states"))[-1],
        "encoded": out.get("encoder_last_hidden_state"),
        "sequence": out.get("seq_relationship_logits", out.get("sop_logits")),
        "pooled": out.get("pooler_output"),
        "logits": out.get("prediction_logits", out.get("logits")),
    }
    base = getattr(model, model.base_model_prefix, None)
    if getattr(base, "pooler", None) is not None:
        inside = {k: inputs[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        found["pooled"] = base(**inside).pooler_output
    if isinstance(model, transformers.ReformerPreTrainedModel):
        # Their list of hidden states has one of the two streams only, and before the last norm.
        inside = {k: v for k, v in inputs.items() if k != "labels"}
        found["features"] = base(**inside).last_hidden_state
    if out.get("loss") is not None:
        return out.loss, found
    real = inputs["attention_mask"][..., None]
    return (found["features"] ** 3 * real).sum() + (found["pooled"] ** 3).sum(), found


def compare(name: str, folder: Path) -> dict[str, Any]:
    """Returns the differences of one case: see README.md for what each number is."""
    case = CASES[name]
    theirs = reference(case)
    theirs.save_pretrained(folder / "theirs")
    model, params, _ = hub.load(folder / "theirs")
    module = models.build(model)
    inputs, ours = batch(case, model)
    theirs_loss, expected = run_reference(theirs, inputs)
    theirs.zero_grad()
    theirs_loss.backward()

    def run(params):
        outputs = module.apply({"params": params}, ours)
        found = outputs._asdict() | outputs.heads
        if outputs.matrix is not None:
            found["logits"] = models.logits(outputs)
        elif "detection" in outputs.heads:
            found["logits"] = outputs.heads["detection"]
        return loss_of(outputs, ours), found

    step = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICK)
    with rotations_of(case.config.get("hash_seed")):
        (loss, found), grads = step(params)
    result: dict[str, Any] = {
        "family": hub.families.get(theirs.config.model_type).name,
        "reference": case.reference,
        "parameters": int(sum(x.size for x in jax.tree.leaves(params))),
        "loss": abs(loss.item() - theirs_loss.item()) / max(abs(theirs_loss.item()), 1),
    }
    for key, value in expected.items():
        if value is not None:
            real = ours["encoder_segment_ids" if key == "encoded" else "segment_ids"]
            a, b = np.asarray(found[key]), value.detach().numpy()
            if key not in ("pooled", "sequence"):
                a, b = a[real > 0], b[real > 0]
            result[key] = float(np.abs(a - b).max() / max(np.abs(b).max(), 1))

    family = hub.families.get(theirs.config.model_type)
    tensors = gradients(theirs, folder / "gradients")
    wanted = plan(family, model)
    full = lambda name: name if name in tensors else name.removeprefix(family.prefix)
    expected_grads = from_tensors(wanted, lambda name: tensors[full(name)])
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected_grads))
    relative = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (
            float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-3 * largest)),
            jax.tree_util.keystr(path, simple=True, separator="/"),
        ),
        grads,
        expected_grads,
    )
    leaves = jax.tree.leaves(relative, is_leaf=lambda x: isinstance(x, tuple))
    result["gradient"], result["worst_gradient"] = max(leaves)
    result["round_trip"] = round_trip(theirs, inputs, model, params, folder / "ours")
    return result


def gradients(model: torch.nn.Module, folder: Path) -> dict[str, np.ndarray]:
    """Gradients by the names that files have for the parameters: a model of them, saved."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, own in zip(twin.parameters(), model.parameters(), strict=True):
            grad = torch.zeros_like(own) if own.grad is None else own.grad
            parameter.copy_(grad)
        for buffer in twin.buffers():
            buffer.zero_()
    twin.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def round_trip(theirs, inputs: dict, model, params, folder: Path) -> bool:
    """Exports, opens in transformers: are all weights bitwise the same, and the outputs equal?"""
    hub.save(model, params, None, folder, theirs.config.model_type)
    # What bears on a run but is no part of the model.
    run = {k: v for k, v in theirs.config.to_dict().items() if k in ("hash_seed", "use_cache")}
    again, info = type(theirs).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **run
    )
    ready(again)
    if any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise AssertionError(f"transformers says of the exported folder: {info}")
    before, after = theirs.state_dict(), again.state_dict()
    same = before.keys() == after.keys()
    same &= all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        a, b = run_reference(theirs, inputs)[1], run_reference(again, inputs)[1]
    # Where an array lies in memory can change the last bit of a product.
    close = lambda x, y: torch.allclose(x, y, rtol=1e-6, atol=1e-6)
    return bool(same and all(a[k] is None or close(a[k], b[k]) for k in a))


BATCHES = 5  # of random tokens, one after the other and again: their losses fall by being learned


def train(name: str, folder: Path, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses of `steps` steps of AdamW, ours and theirs: same weights, same batches."""
    case = CASES[name]
    theirs = reference(case)
    theirs.save_pretrained(folder)
    model, params, _ = hub.load(folder)
    module = models.build(model)
    c = configs.base()
    c.model = model
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.clip_norm = 0.0
    group = groups.of(c, models.abstract_params(module))
    tx = optimizer.build(c, group)
    batches = [batch(case, model, step % BATCHES) for step in range(steps)]

    wanted = plan(hub.families.get(theirs.config.model_type), model)
    tensors = dict(theirs.named_parameters())
    decay = [n for n, pieces in wanted.items() if group["/".join(pieces[0].path)].decay]
    apart = [
        {"params": [tensors[n] for n in decay], "weight_decay": c.optimizer.weight_decay},
        {"params": [tensors[n] for n in wanted if n not in decay], "weight_decay": 0.0},
    ]
    o = c.optimizer
    adam = torch.optim.AdamW(apart, lr=o.learning_rate, betas=optimizer.betas(o), eps=o.eps)
    expected = []
    for inputs, _ in batches:
        adam.zero_grad()
        loss = theirs(**inputs).loss
        loss.backward()
        adam.step()
        expected.append(loss.item())

    def step(carry, ours):
        params, state = carry
        loss, grads = jax.value_and_grad(
            lambda p: loss_of(module.apply({"params": p}, ours), ours)
        )(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(ours for _, ours in batches))
    run = lambda params: jax.lax.scan(step, (params, tx.init(params)), stacked)[1]
    with rotations_of(case.config.get("hash_seed")):
        losses = jax.jit(run, compiler_options=QUICK)(params)
    return np.asarray(losses), np.array(expected)


def train_hashed(name: str, folder: Path, steps: int = 100) -> tuple[np.ndarray, ...]:
    """Returns `train`'s losses and [steps], the share of real tokens' buckets that differ.

    A bucket is an argmax: where its two largest entries agree up to rounding, the two sides part.
    """
    ours, theirs = [], []
    assign = lsh.assign

    def logged(*args):
        found = assign(*args)
        jax.debug.callback(lambda x: ours.append(np.array(x)), found, ordered=True)
        return found

    def hook(module, _, outputs):
        # With gradients on it is the backward pass, which takes the buckets that there were.
        if getattr(outputs, "buckets", None) is not None and not torch.is_grad_enabled():
            if hasattr(module, "query_key"):
                theirs.append(outputs.buckets.numpy().copy())

    with contextlib.ExitStack() as stack:
        stack.callback(torch.nn.modules.module.register_module_forward_hook(hook).remove)
        stack.enter_context(mock.patch.object(lsh, "assign", logged))
        losses = train(name, folder, steps)
        jax.effects_barrier()
    case, model = CASES[name], hub.load(folder)[0]
    T, share = case.shape[1], []
    layers = len(ours) // steps
    assert len(ours) == len(theirs) == layers * steps
    for step in range(steps):
        real = batch(case, model, step % BATCHES)[1]["segment_ids"][:, None, None] > 0
        # Round r of theirs starts counting at r times the buckets, and padding adds one to them.
        stride = int(np.prod(model.lsh_buckets)) + (T % model.lsh_chunk > 0 or not real.all())
        pairs = zip(ours[step * layers :][:layers], theirs[step * layers :], strict=False)
        other = [(b[..., :T] % stride != a)[np.broadcast_to(real, a.shape)] for a, b in pairs]
        share.append(np.concatenate(other).mean())
    return *losses, np.array(share)

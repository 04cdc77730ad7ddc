"""BERT and its descendants."""

from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.hub.families import llama, rope
from llm_jax.hub.families.parts import GATED, ONE_CLASSIFIER, block, keys
from llm_jax.hub.family import Family, Key

POST_NORM = {
    "kind": "encoder",
    "norm_place": "post",
    "norm_epsilon": 1e-12,
    "embed_norm": True,
    "head": "none",
}
BERT_SIZES = dict(
    vocab_size=30522, max_position_embeddings=512, type_vocab_size=2, hidden_size=768,
    num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act="gelu",
    layer_norm_eps=1e-12, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    initializer_range=0.02,
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


def _bert_blocks(name: str) -> dict[str, str]:
    return block(
        "encoder", name + ".encoder.layer.{}",
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense", "attention.output.LayerNorm output.LayerNorm",
    )  # fmt: skip


def _with_dense(dense: str, classifier: str) -> dict[str, dict[str, str]]:
    """As ONE_CLASSIFIER, with a dense layer before the sequence classifier."""
    return ONE_CLASSIFIER | {"sequence": {"pooler/dense": dense, "sequence": classifier}}


TASKS = {"sequence": "SequenceClassification", "token": "TokenClassification",
         "span": "QuestionAnswering", "mlm": "MaskedLM"}  # fmt: skip


def _like_bert(name: str, title: str, mlm: str, **own: Any) -> Family:
    """Creates a table of the entries shared by all, plus the family's `own` entries.

    mlm: names of the masked-LM head's dense layer, norm, bias, and copy of the token embedding.
    """
    dense, norm, bias, decoder = mlm.split()
    modules = {"transform/dense": dense, "transform/norm": norm, "output_bias": bias}
    copies = {f"{decoder}.weight": f"{name}.embeddings.word_embeddings.weight"}
    copies |= {f"{decoder}.bias": bias} if bias != f"{decoder}.bias" else {}
    classes = {head: f"{title}For{task}" for head, task in TASKS.items()}
    all_have = {
        "model": POST_NORM, "modules": _embeddings(name) | modules, "copies": copies,
        "classes": classes | {"none": f"{title}Model"},
    }  # fmt: skip
    own = {"fixed": BERT_FIXED, "by_head": ONE_CLASSIFIER, "write": _write_types} | own
    own |= {field: value | own.get(field, {}) for field, value in all_have.items()}
    return Family(name=name, prefix=f"{name}.", **own)


BERT = _like_bert(
    "bert", "Bert",
    "cls.predictions.transform.dense cls.predictions.transform.LayerNorm cls.predictions.bias "
    "cls.predictions.decoder",
    ids=BERT_IDS,
    keys=keys(**BERT_SIZES),
    modules=_bert_blocks("bert") | {
        "pooler/dense": "bert.pooler.dense",
        "sequence": "cls.seq_relationship",
    },
    classes={"mlm,sequence": "BertForPreTraining"},
    # Next sentence prediction alone (BertForNextSentencePrediction) is an ordinary classifier.
    copies={
        "cls.seq_relationship.weight": "classifier.weight",
        "cls.seq_relationship.bias": "classifier.bias",
    },
)  # fmt: skip


def _read_offset(hf: dict, names: Collection[str]) -> dict:
    """RoBERTa's positions start after the padding id, in a correspondingly longer table."""
    pad, length = hf.get("pad_token_id", 1), hf.get("max_position_embeddings", 512)
    for name, value in (("pad_token_id", pad), ("max_position_embeddings", length)):
        configs.typed(f"config.json: {name}", 0, value)
    if not 0 <= pad < length - 1:
        raise ConfigError(f"config.json: pad_token_id={pad}: roberta's positions start after it, "
                          f"but max_position_embeddings={length}")
    return hf | {"position_offset": pad + 1, "max_position_embeddings": length - pad - 1}


def _write_offset(hf: dict, model: ConfigDict) -> dict:
    offset = hf.pop("position_offset")
    if offset < 1:
        raise ConfigError(f"model.position_offset={offset}: roberta needs 1 or more (published: 2)")
    length = hf["max_position_embeddings"] + offset
    return _write_types(hf | {"pad_token_id": offset - 1, "max_position_embeddings": length}, model)


def _behind_padding(model: ConfigDict, params: Any, tokenizer: Tokenizer) -> tuple:
    """Moves the used rows of the position table to follow the padding id, as in transformers.

    transformers counts non-padding tokens: a real token with that id would shift all later ones.
    """
    pad, shift = tokenizer.pad_id, model.position_offset
    if pad in (tokenizer.bos_id, tokenizer.eos_id):
        raise ConfigError("roberta's positions depend on the padding token, but its id "
                          f"{pad} also begins or ends a text in this tokenizer")
    if pad + 1 == shift:
        return model, params
    model = ConfigDict(model.to_dict() | {"position_offset": pad + 1})
    encoder = params["encoder"]
    embeddings = encoder["embeddings"]
    rows = np.asarray(embeddings["positions"]["embedding"])[shift:]
    table = {"embedding": np.pad(rows, [(pad + 1, 0), (0, 0)])}
    encoder = {**encoder, "embeddings": {**embeddings, "positions": table}}
    return model, {**params, "encoder": encoder}


ROBERTA = _like_bert(
    "roberta", "Roberta", "lm_head.dense lm_head.layer_norm lm_head.bias lm_head.decoder",
    keys=(*keys(**BERT_SIZES | {"vocab_size": 50265}), Key("position_offset", "position_offset")),
    modules=_bert_blocks("roberta") | {"pooler/dense": "roberta.pooler.dense"},
    by_head=_with_dense("classifier.dense", "classifier.out_proj"),
    head_activation="gelu",
    read=_read_offset,
    write=_write_offset,
    place=_behind_padding,
)  # fmt: skip
DISTILBERT = _like_bert(
    "distilbert", "DistilBert",
    "vocab_transform vocab_layer_norm vocab_projector.bias vocab_projector",
    model={"pooler_activation": "relu"},
    ids=BERT_IDS,
    keys=keys(
        vocab_size=30522, max_position_embeddings=512, dim=768, n_layers=6, n_heads=12,
        hidden_dim=3072, activation="gelu", dropout=0.1, attention_dropout=0.1,
        initializer_range=0.02,
    ),
    fixed={"tie_word_embeddings": (True,)},
    synonyms={
        "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"
    },
    modules=block(
        "encoder", "distilbert.transformer.layer.{}",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
        "ffn.lin1 ffn.lin2", "sa_layer_norm output_layer_norm",
    ),
    by_head=_with_dense("pre_classifier", "classifier"),
    write=lambda hf, model: hf,
)  # fmt: skip
ELECTRA = _like_bert(
    "electra", "Electra",
    "generator_predictions.dense generator_predictions.LayerNorm generator_lm_head.bias "
    "generator_lm_head",
    model={"pooler_activation": "gelu"},
    ids=BERT_IDS,
    keys=keys(**BERT_SIZES | dict(
        hidden_size=256, num_attention_heads=4, intermediate_size=1024, embedding_size=128,
    )),
    modules=_bert_blocks("electra") | {
        "encoder/embeddings/projection": "electra.embeddings_project",
        "detection/dense": "discriminator_predictions.dense",
        "detection/score": "discriminator_predictions.dense_prediction",
    },
    by_head=_with_dense("classifier.dense", "classifier.out_proj"),
    head_activation="gelu",
    classes={"detection": "ElectraForPreTraining"},
)  # fmt: skip


def _read_albert(hf: dict, names: Collection[str]) -> dict:
    if hf.get("embedding_size", 128) == hf.get("hidden_size", 4096):
        raise ConfigError(f"config.json: embedding_size={hf.get('embedding_size', 128)} equals "
                          "hidden_size; llm_jax does not support a projection between equal "
                          "sizes")
    return hf


ALBERT = _like_bert(
    "albert", "Albert",
    "predictions.dense predictions.LayerNorm predictions.bias predictions.decoder",
    model={"share_layers": True},
    keys=keys(**BERT_SIZES | dict(
        vocab_size=30000, hidden_size=4096, num_attention_heads=64, intermediate_size=16384,
        hidden_act="gelu_new", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        embedding_size=128,
    )),
    fixed=BERT_FIXED | {"num_hidden_groups": (1,), "inner_group_num": (1,)},
    modules={
        "encoder/embeddings/projection": "albert.encoder.embedding_hidden_mapping_in",
        "pooler/dense": "albert.pooler",
        "sequence": "sop_classifier.classifier",
    } | block(
        "encoder", "albert.encoder.albert_layer_groups.0.albert_layers.0",
        "attention.query attention.key attention.value attention.dense", "ffn ffn_output",
        "attention.LayerNorm full_layer_layer_norm",
    ),
    classes={"mlm,sequence": "AlbertForPreTraining"},
    read=_read_albert,
)  # fmt: skip


def _read_modernbert(hf: dict, names: Collection[str]) -> dict:
    """Reads the pattern of full and local layers; their window counts both sides and the token."""
    if hf.pop("rope_scaling", None):
        raise ConfigError("config.json: rope_scaling: modernbert scales both rotary bases; llm_jax "
                          "supports scaling of full attention only, in rope_parameters")
    period = llama.count(hf, "global_attn_every_n_layers", 3)
    hf["sliding_window"] = llama.count(hf, "local_attention", 128) // 2 + 1
    types = llama.layer_types(hf, 22, None, lambda i: i % period == 0)
    hf["rope_theta"] = hf.pop("global_rope_theta", 160_000.0)
    hf, local = rope.read_by_type(hf, names, 160_000.0, "local_rope_theta", 10_000.0)
    more = [local * (kind == "sliding_attention") for kind in types]
    more[:1] = [f"{x} attention_norm=False" for x in more[:1]]
    return hf | llama.read_layers(types, more)


def _write_modernbert(hf: dict, model: ConfigDict) -> dict:
    hf, types, window = llama.write_layers(hf, model)
    hf = rope.write_by_type(hf, model, types)
    del hf["rope_theta"], hf["rope_scaling"]
    full, local = (hf["rope_parameters"][kind]["rope_theta"] for kind in rope.KINDS)
    return hf | {
        "layer_types": types, "local_attention": 2 * (window or 65) - 2,
        "global_rope_theta": full, "local_rope_theta": local,
    }  # fmt: skip


MODERNBERT = Family(
    name="modernbert",
    model={
        "kind": "encoder", "positions": "rotary", "embed_norm": True, "use_bias": False,
        "head": "none",
    },
    ids=BERT_IDS,
    keys=(
        *keys(
            GATED, vocab_size=50368, max_position_embeddings=8192, hidden_size=768,
            num_hidden_layers=22, num_attention_heads=12, intermediate_size=1152,
            hidden_activation="gelu", norm_eps=1e-5, embedding_dropout=0.0, mlp_dropout=0.0,
            attention_dropout=0.0, initializer_range=0.02,
        ), *llama.LAYERS, *rope.KEYS,
    ),
    fixed=rope.FIXED | {
        "norm_bias": (False,), "attention_bias": (False,), "mlp_bias": (False,),
        "classifier_bias": (False,), "decoder_bias": (True,), "classifier_activation": ("gelu",),
        "tie_word_embeddings": (True,), "sparse_prediction": (False,),
        "rope_parameters.truncate": (True,),  # unused
    },
    prefix="model.",
    modules={
        "embed": "model.embeddings.tok_embeddings",
        "encoder/embeddings/norm": "model.embeddings.norm",
        "encoder/final_norm": "model.final_norm",
        "transform/dense": "head.dense",
        "transform/norm": "head.norm",
        "output_bias": "decoder.bias",
    } | block("encoder", "model.layers.{}", "attn.Wqkv attn.Wqkv attn.Wqkv attn.Wo",
              "mlp.Wi mlp.Wi mlp.Wo", "attn_norm mlp_norm"),
    head_activation="geglu",
    classes={"mlm": "ModernBertForMaskedLM", "none": "ModernBertModel"},
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    read=_read_modernbert,
    write=_write_modernbert,
)  # fmt: skip

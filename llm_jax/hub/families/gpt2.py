"""GPT-2."""

from llm_jax.hub.families.parts import ACTIVATIONS, ONE_CLASSIFIER, block
from llm_jax.hub.family import Family, Key

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
    by_head=ONE_CLASSIFIER | {"sequence": {"sequence": "score"}},
    classes={"lm": "GPT2LMHeadModel", "sequence": "GPT2ForSequenceClassification",
             "token": "GPT2ForTokenClassification", "span": "GPT2ForQuestionAnswering"},
    copies={"lm_head.weight": "transformer.wte.weight"},
    dropped=(r".*\.attn\.(masked_)?bias",),
)  # fmt: skip

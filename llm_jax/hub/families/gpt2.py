"""GPT-2."""

from llm_jax.hub.families.parts import ONE_CLASSIFIER, block, keys
from llm_jax.hub.family import Family

GPT2 = Family(
    name="gpt2",
    model={"activation": "gelu_tanh"},
    keys=keys(
        vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=None,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, resid_pdrop=0.1, embd_pdrop=0.1,
        attn_pdrop=0.1, initializer_range=0.02, tie_word_embeddings=True,
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
    by_head=ONE_CLASSIFIER | {"sequence": {"sequence": "score"}},
    classes={"lm": "GPT2LMHeadModel", "sequence": "GPT2ForSequenceClassification",
             "token": "GPT2ForTokenClassification", "span": "GPT2ForQuestionAnswering"},
    copies={"lm_head.weight": "transformer.wte.weight"},
    dropped=(r".*\.attn\.(masked_)?bias",),
)  # fmt: skip

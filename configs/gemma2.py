"""Gemma 2 (2024, https://arxiv.org/abs/2408.00118, tables 1 and 2), as released.

python launch.py train --config=configs/gemma2.py:2b --workdir=runs/gemma2 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Local layers with a window of 4,096 alternate with full layers (section 2); soft caps of 50 for
attention scores and 30 for logits; norms before and after each sublayer with scales 1 + w; GeGLU.
Numbers of tokens are from section 3.1. Batch size and learning rate are not published: those of
LLaMA 2's nearest size are used.
"""

from configs import llama

#        layers  width  heads  kv heads  head dim  mlp  trillion tokens
VARIANTS = {
    "2b": (26, 2304, 8, 4, 256, 9216, 2),
    "9b": (42, 3584, 16, 8, 256, 14336, 8),
    "27b": (46, 4608, 32, 16, 128, 36864, 13),
}


def get_config(variant="2b"):
    layers, width, heads, kv_heads, head, mlp, trillions = VARIANTS[variant]
    c = llama.get_config({"27b": "2-70b"}.get(variant, "2-7b"))
    m = c.model
    m.vocab_size = 256000
    m.max_length = 8192
    m.num_layers = layers
    m.layers = "1 local window=4096, 1 flash"
    m.embed_dim = width
    m.num_heads = heads
    m.num_kv_heads = kv_heads
    m.head_dim = head
    m.attention_scale = 144**-0.5 if variant == "27b" else 0.0
    m.attention_softcap = 50.0
    m.output_softcap = 30.0
    m.mlp_dim = mlp
    m.activation = "geglu_tanh"
    m.norm_epsilon = 1e-6
    m.norm_place = "sandwich"
    m.norm_zero_centered = True
    m.scale_embeddings = True
    m.tie_embeddings = True
    c.data.batch_size = 512
    c.train.steps = round(trillions * 1e12 / 2**22)
    return c

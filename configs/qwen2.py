"""Qwen2 (2024, https://arxiv.org/abs/2407.10671, table 1) and Qwen2.5 (2412.15115, table 1).

python launch.py train --config=configs/qwen2.py:0.5b --workdir=runs/qwen2 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA with biases on queries, keys and values, and grouped queries. Sizes are those of Qwen2.5;
Qwen2's 0.5b, 1.5b, 7b and 72b differ only in lengths and epsilons. 3b and smaller have tied
embeddings. Steps and learning rates are not published: those of LLaMA 2's nearest size are used.
"""

from configs import llama

#          layers  width  heads  kv heads  mlp  vocabulary  length  epsilon  LLaMA 2's
VARIANTS = {
    "0.5b": (24, 896, 14, 2, 4864, 151936, 32768, 1e-6, "7b"),
    "1.5b": (28, 1536, 12, 2, 8960, 151936, 131072, 1e-6, "7b"),
    "3b": (36, 2048, 16, 2, 11008, 151936, 32768, 1e-6, "7b"),
    "7b": (28, 3584, 28, 4, 18944, 152064, 131072, 1e-6, "7b"),
    "14b": (48, 5120, 40, 8, 13824, 152064, 131072, 1e-5, "13b"),
    "32b": (64, 5120, 40, 8, 27648, 152064, 131072, 1e-5, "70b"),
    "72b": (80, 8192, 64, 8, 29568, 152064, 131072, 1e-5, "70b"),
}


def get_config(variant="0.5b"):
    layers, width, heads, kv_heads, mlp, vocabulary, length, eps, like = VARIANTS[variant]
    c = llama.get_config(f"2-{like}")
    c.model.vocab_size = vocabulary
    c.model.max_length = length
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = kv_heads
    c.model.mlp_dim = mlp
    c.model.norm_epsilon = eps
    c.model.rotary_base = 1e6
    c.model.qkv_bias = True
    c.model.tie_embeddings = width <= 2048
    c.data.batch_size = 2**22 // length
    return c

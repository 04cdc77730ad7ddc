"""Qwen3 (2025, https://arxiv.org/abs/2505.09388, tables 1 and 2), as released.

python launch.py train --config=configs/qwen3.py:0.6b --workdir=runs/qwen3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

Qwen2 without biases, with QK norm and head size 128 at any width; 30b-a3b and 235b-a22b have 128
experts per layer, eight per token. Pretraining ended at 32,768 tokens (section 3.2), which released
configs extend to 40,960. Batch size, steps and learning rate are not published: those of LLaMA 2's
nearest size are used.
"""

from configs import llama

#          layers  width  heads  mlp  LLaMA 2's
VARIANTS = {
    "0.6b": (28, 1024, 16, 3072, "7b"),
    "1.7b": (28, 2048, 16, 6144, "7b"),
    "4b": (36, 2560, 32, 9728, "7b"),
    "8b": (36, 4096, 32, 12288, "7b"),
    "14b": (40, 5120, 40, 17408, "13b"),
    "32b": (64, 5120, 64, 25600, "70b"),
    "30b-a3b": (48, 2048, 32, 768, "7b"),
    "235b-a22b": (94, 4096, 64, 1536, "13b"),
}


def get_config(variant="0.6b"):
    layers, width, heads, mlp, like = VARIANTS[variant]
    c = llama.get_config(f"2-{like}")
    c.model.vocab_size = 151936
    c.model.max_length = 32768
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = 8
    c.model.head_dim = 128
    c.model.mlp_dim = mlp
    c.model.norm_epsilon = 1e-6
    c.model.rotary_base = 1e6
    c.model.qk_norm = True
    c.model.tie_embeddings = width <= 2560 and mlp > 2000
    if "-a" in variant:
        c.model.num_kv_heads = 4
        c.model.num_experts = 128
        c.model.experts_per_token = 8
        c.model.router_balance = 0.001
    c.data.batch_size = 128
    return c

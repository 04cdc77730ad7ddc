"""Mistral (Jiang 2023, https://arxiv.org/abs/2310.06825, table 1); later ones as released.

python launch.py train --config=configs/mistral.py:7b --workdir=runs/mistral \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

7b: LLaMA with grouped queries and a window of 4,096 in every layer. 7b-v0.3, nemo-12b and small-24b
have no window. Data, steps and learning rates are not published: those of LLaMA 2 are used (7b, and
13b for the larger two).
"""

from configs import llama

#         layers  width  head dim  mlp  vocabulary  length  rotary base
VARIANTS = {
    "7b": (32, 4096, 128, 14336, 32000, 32768, 1e4),
    "7b-v0.3": (32, 4096, 128, 14336, 32768, 32768, 1e6),
    "nemo-12b": (40, 5120, 128, 14336, 131072, 131072, 1e6),
    "small-24b": (40, 5120, 128, 32768, 131072, 32768, 1e8),
}


def get_config(variant="7b"):
    layers, width, head, mlp, vocabulary, length, base = VARIANTS[variant]
    c = llama.get_config("2-7b" if variant.startswith("7b") else "2-13b")
    c.model.vocab_size = vocabulary
    c.model.max_length = length
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = 32
    c.model.num_kv_heads = 8
    c.model.head_dim = head
    c.model.mlp_dim = mlp
    c.model.rotary_base = base
    if variant == "7b":
        c.model.attention = "local"
        c.model.window = 4096
    c.data.batch_size = 2**22 // length
    return c

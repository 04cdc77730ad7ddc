"""Phi-3 (2024, https://arxiv.org/abs/2404.14219) and Phi-4 (2024, 2412.08905), as released.

python launch.py train --config=configs/phi3.py:mini-4k --workdir=runs/phi3 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

LLaMA; mini-4k and medium-4k with a window of 2,047 tokens. The 128K models, with LongRoPE, are not
supported. Numbers of tokens are from the papers, and so are 4-14b's peak learning rate and batch
size (section 3); other settings are those of LLaMA 2's nearest size.
"""

from configs import llama

#            vocabulary  length  layers  width  heads  kv heads  mlp  base  trillion tokens
VARIANTS = {
    "mini-4k": (32064, 4096, 32, 3072, 32, 32, 8192, 1e4, 3.3),
    "medium-4k": (32064, 4096, 40, 5120, 40, 10, 17920, 1e4, 4.8),
    "4-14b": (100352, 16384, 40, 5120, 40, 10, 17920, 2.5e5, 10),
}


def get_config(variant="mini-4k"):
    vocab, length, layers, width, heads, kv_heads, mlp, base, trillions = VARIANTS[variant]
    c = llama.get_config("2-7b" if width == 3072 else "2-13b")
    c.model.vocab_size = vocab
    c.model.max_length = length
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.num_kv_heads = kv_heads
    c.model.mlp_dim = mlp
    c.model.rotary_base = base
    if length == 4096:
        c.model.attention = "local"
        c.model.window = 2047
    else:
        c.optimizer.learning_rate = 3e-4
        c.data.batch_size = 1440
    c.train.steps = round(trillions * 1e12 / (c.data.batch_size * length))
    return c

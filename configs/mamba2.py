"""Mamba-2 (Dao and Gu 2024, https://arxiv.org/abs/2405.21060, table 9), as released.

python launch.py train --config=configs/mamba2.py:130m --workdir=runs/mamba2 \\
    --config.data.train=FILE --config.tokenizer.path=tokenizer.json

State space layers without feed-forward networks: state size 128, heads of 64 channels, expansion
factor 2, a short convolution. codestral-7b is Mistral AI's model (2024), with eight groups of
heads. Training (appendix D.2, on 300 billion tokens of the Pile): AdamW(0.9, 0.95), weight decay
0.1, clipping 1.0, GPT-3's batch sizes and five times its learning rates.
"""

from llm_jax.config import base

#                layers  width  groups  vocabulary  GPT-3's rate  batch tokens
VARIANTS = {
    "130m": (24, 768, 1, 50288, 6e-4, 2**19),
    "370m": (48, 1024, 1, 50288, 3e-4, 2**19),
    "780m": (48, 1536, 1, 50288, 2.5e-4, 2**19),
    "1.3b": (48, 2048, 1, 50288, 2e-4, 2**20),
    "2.7b": (64, 2560, 1, 50288, 1.6e-4, 2**20),
    "codestral-7b": (64, 4096, 8, 32768, 1.2e-4, 2**21),
}


def get_config(variant="130m"):
    layers, width, groups, vocabulary, rate, tokens = VARIANTS[variant]
    c = base()
    m = c.model
    m.vocab_size = vocabulary
    m.max_length = 2048
    m.num_layers = layers
    m.embed_dim = width
    m.attention = "mamba2"
    m.feed_forward = False
    m.num_heads = width // 32
    m.head_dim = 128
    m.value_dim = 64
    m.num_key_heads = groups
    m.short_conv = 4
    m.short_conv_bias = True
    m.positions = "none"
    m.norm = "rmsnorm"
    m.use_bias = False
    m.tie_embeddings = variant != "codestral-7b"
    m.dtype = "bfloat16"
    c.tokenizer.name = "file"
    c.tokenizer.path = "tokenizer.json"
    c.data.train = "tfds:c4/en"
    c.data.batch_size = tokens // 2048
    c.optimizer.learning_rate = 5 * rate
    c.optimizer.b1, c.optimizer.b2 = 0.9, 0.95
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip_norm = 1.0
    c.train.steps = round(3e11 / tokens)
    c.optimizer.warmup_steps = 0.1
    return c

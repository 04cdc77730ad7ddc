"""ALBERT: A Lite BERT (Lan 2020), table 1: parameters shared across layers, factorised embedding.

python launch.py train --config=configs/albert.py:base --workdir=runs/albert \\
    --config.data.train=FILE

N-gram masking and sentence order prediction (sections 3.1 and 4.1); batches of 4,096 for 125,000
steps. Published parameter counts: 12M, 18M, 60M, 235M. The paper uses LAMB; this config AdamW.
"""

from configs import bert

#              layers  width  heads
VARIANTS = {
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "xlarge": (24, 2048, 16),
    "xxlarge": (12, 4096, 64),
}


def get_config(variant="base"):
    layers, width, heads = VARIANTS[variant]
    c = bert.get_config("base")
    c.model.vocab_size = 30000
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = heads
    c.model.embedding_dim = 128
    c.model.share_layers = True
    c.model.activation = "gelu_tanh"
    c.model.dropout = c.model.attention_dropout = 0.0
    c.objective.name = "albert"
    c.tokenizer.vocab_size = 30000
    c.data.batch_size = 4096
    c.optimizer.learning_rate = 1.76e-3
    c.optimizer.warmup_steps = 3125
    c.train.steps = 125_000
    return c

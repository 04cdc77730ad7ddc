"""BERT (Devlin 2019, section 3) and its small sizes (Turc 2019, table 1).

python launch.py train --config=configs/bert.py:base --workdir=runs/bert \\
    --config.data.train=FILE

Post-norm encoder with segment embeddings, a pooler and two heads: masked LM and next sentence
prediction (appendix A.2: batches of 256, 1 million steps, learning rate 1e-4, warm-up of 10,000
steps; 90 % of the steps at length 128: set model.max_length=128 first). Turc's sizes, in
layers/width: tiny 2/128, mini 4/256, small 4/512, medium 8/512.
"""

from llm_jax.config import base

#             layers  width
VARIANTS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def get_config(variant="base"):
    layers, width = VARIANTS[variant]
    c = base()
    c.model.kind = "encoder"
    c.model.vocab_size = 30522
    c.model.max_length = 512
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.num_heads = width // 64
    c.model.norm_place = "post"
    c.model.norm_epsilon = 1e-12
    c.model.activation = "gelu"
    c.model.embed_norm = True
    c.model.type_vocab_size = 2
    c.model.head = "mlm,sequence"
    c.model.pooler = True
    c.model.num_labels = 2
    c.model.dropout = c.model.attention_dropout = 0.1
    c.objective.name = "bert"
    c.tokenizer.name = "wordpiece"
    c.tokenizer.vocab_size = 30522
    c.data.train = "tfds:wikipedia/20230601.en"
    c.data.packing = "none"
    c.data.batch_size = 256
    c.optimizer.learning_rate = 1e-4
    c.optimizer.schedule = "linear"
    c.optimizer.final_fraction = 0.0
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 0.01
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-6
    c.train.steps = 1_000_000
    c.eval.every = c.checkpoint.every = 5000
    return c

"""RoBERTa: A Robustly Optimized BERT (Liu 2019), sections 3 and 5, tables 9 and 10.

python launch.py train --config=configs/roberta.py:base --workdir=runs/roberta \\
    --config.data.train=FILE

BERT without segments and next sentence prediction, with byte-level BPE of 50,265 tokens, dynamic
masking, batches of 8,192 for 500,000 steps; Adam(0.9, 0.98, 1e-6), no gradient clipping (table 9).
"""

from configs import bert

VARIANTS = {"base": (24_000, 6e-4), "large": (30_000, 4e-4)}


def get_config(variant="base"):
    warmup, rate = VARIANTS[variant]
    c = bert.get_config(variant)
    c.model.vocab_size = c.tokenizer.vocab_size = 50265
    c.model.norm_epsilon = 1e-5
    c.model.type_vocab_size = 1
    c.model.position_offset = 2
    c.model.pooler = False
    c.model.head = "mlm"
    c.model.num_labels = 0
    c.objective.name = "masked_lm"
    c.tokenizer.name = "bpe"
    c.data.train = "tfds:c4/en"
    c.data.packing = "first_fit"
    c.data.batch_size = 8192
    c.optimizer.learning_rate = rate
    c.optimizer.warmup_steps = warmup
    c.optimizer.b2 = 0.98
    c.optimizer.clip_norm = 0.0
    c.train.steps = 500_000
    return c

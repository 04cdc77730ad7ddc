"""ELECTRA: Pre-training Text Encoders as Discriminators (Clark 2020), table 6.

python launch.py train --config=configs/electra.py:small --workdir=runs/electra \\
    --config.data.train=FILE

A BERT discriminator that detects replaced tokens, and a small masked LM generator (a quarter or a
third of its width) that replaces them, with shared token embeddings. Published parameter counts
without the generator: 14M, 110M, 335M.
"""

from configs import bert

#          layers  width  table  heads  generator  length  rate  batch  steps    masked
VARIANTS = {
    "small": (12, 256, 128, 4, 1 / 4, 128, 5e-4, 128, 1_000_000, 0.15),
    "base": (12, 768, 768, 12, 1 / 3, 512, 2e-4, 256, 766_000, 0.15),
    "large": (24, 1024, 1024, 16, 1 / 4, 512, 2e-4, 2048, 400_000, 0.25),
}


def get_config(variant="small"):
    layers, width, table, heads, generator, length, rate, batch, steps, masked = VARIANTS[variant]
    c = bert.get_config("base")
    c.model.num_layers = layers
    c.model.embed_dim = width
    c.model.embedding_dim = table
    c.model.num_heads = heads
    c.model.max_length = length
    c.model.head = "detection"
    c.model.pooler = False
    c.model.num_labels = 0
    c.model.generator_fraction = generator
    c.objective.name = "replaced_token_detection"
    c.objective.mask_rate = masked
    c.data.packing = "first_fit"
    c.data.batch_size = batch
    c.optimizer.learning_rate = rate
    c.train.steps = steps
    return c

"""DistilBERT (Sanh 2019), section 3: BERT with half the layers, no segments, no pooler.

python launch.py train --config=configs/distilbert.py --workdir=runs/distilbert \\
    --config.data.train=FILE

This config trains by masked LM only; the paper also distils from a teacher (docs/compress.md).
"""

from configs import bert

VARIANTS = ("base",)


def get_config(variant="base"):
    c = bert.get_config(variant)
    c.model.num_layers = 6
    c.model.type_vocab_size = 0
    c.model.pooler = False
    c.model.head = "mlm"
    c.model.num_labels = 0
    c.objective.name = "masked_lm"
    return c

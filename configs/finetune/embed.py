"""Vectors of texts: pairs that belong together come near each other (SimCSE; Gao 2021).

python launch.py train --config=configs/finetune/embed.py --workdir=runs/embed \\
    --config.init_from=HF_FOLDER_OR_WORKDIR --config.data.train=pairs.jsonl

A row has a text and its pair (question and answer, title and body, entailment); one with
data.negative_column also a text that is near and does not belong. Without pairs,
data.pair_column=text: each text is its own, under another mask of dropout. `predict` writes
vectors of length 1. A large batch has many negatives; each text has half a row.
"""

from configs.finetune import classify


def get_config():
    c = classify.get_config()
    c.objective.name = "contrastive"
    c.data.pair_column = "pair"
    c.data.batch_size = 64
    c.model.head = "none"
    c.model.pooler = False
    c.eval.metric = "mrr"
    return c

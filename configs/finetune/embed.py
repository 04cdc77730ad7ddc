"""Text embeddings by contrastive learning on pairs (SimCSE; Gao 2021).

python launch.py train --config=configs/finetune/embed.py --workdir=runs/embed \\
    --config.init_from=HF_FOLDER_OR_WORKDIR --config.data.train=pairs.jsonl

A row has a text and its pair (question and answer, title and body, entailment) and, with
data.negative_column, a hard negative. Without pairs, set data.pair_column=text: each text is its
own pair, with a different dropout mask. `predict` writes unit-length vectors. Larger batches have
more negatives; each text gets half a row.
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

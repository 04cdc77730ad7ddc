"""Tagging: named entities, parts of speech and other tags of words (Devlin 2019, 5.3).

python launch.py train --config=configs/finetune/tag.py --workdir=runs/ner \\
    --config.init_from=HF_FOLDER_OR_WORKDIR \\
    --config.data.train=train.conll --config.data.validation=dev.conll \\
    --config.data.tokens_column=0 --config.data.tags_column=1

Columns are numbers, from 0, or names if a file has them: form, upos … in .conllu. BIO tags (B-PER,
I-PER, O) are scored as entities, others per word. Without init_from, a small BERT trains from
scratch, which needs a higher learning rate: --config.optimizer.learning_rate=5e-4.
"""

from configs.finetune import classify


def get_config():
    c = classify.get_config()
    c.objective.name = "tagging"
    c.model.head = "token"
    c.model.pooler = False
    c.model.max_length = 128
    c.train.steps = 2000
    return c

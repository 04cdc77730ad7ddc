"""A tag for each word, as named entities or parts of speech (Devlin 2019, 5.3).

python launch.py train --config=configs/finetune/tag.py --workdir=runs/ner \\
    --config.init_from=HF_FOLDER_OR_WORKDIR \\
    --config.data.train=train.conll --config.data.validation=dev.conll \\
    --config.data.tokens_column=0 --config.data.tags_column=1

Columns are numbers, from 0, or names where a file has some: of .conllu form, upos …. Tags as B-PER,
I-PER, O are scored as entities, all others one by one. Without init_from a small BERT learns from
nothing, which takes a larger step: --config.optimizer.learning_rate=5e-4.
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

"""Semantic role labelling: the arguments of a predicate (Shi and Lin 2019).

python launch.py train --config=configs/finetune/roles.py --workdir=runs/roles \\
    --config.init_from=HF_FOLDER_OR_WORKDIR --config.data.train=en_ewt.conllu

Data: Universal PropBank's .conllu, with one example per predicate of a sentence; or any table with
columns tokens, predicate (its index, from 0) and roles (B-ARG0, I-ARG0, O …). The predicate is
surrounded by markers and has a separate type embedding.
"""

from configs.finetune import tag


def get_config():
    c = tag.get_config()
    c.objective.name = "roles"
    c.data.tokens_column = "form"
    c.data.tags_column = "roles"
    return c

"""The arguments of a predicate, with their roles (Shi and Lin 2019).

python launch.py train --config=configs/finetune/roles.py --workdir=runs/roles \\
    --config.init_from=HF_FOLDER_OR_WORKDIR --config.data.train=en_ewt.conllu

Universal PropBank's .conllu, of which a sentence is read once for each predicate; or any table with
columns tokens, predicate (its place among them, from 0) and roles (B-ARG0, I-ARG0, O …). The model
reads the predicate between markers, and with a type embedding of its own.
"""

from configs.finetune import tag


def get_config():
    c = tag.get_config()
    c.objective.name = "roles"
    c.data.tokens_column = "form"
    c.data.tags_column = "roles"
    return c

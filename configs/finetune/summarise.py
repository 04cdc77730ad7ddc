"""Summarisation: a small Transformer from scratch; `:decoder`: a GPT with a prompt.

python launch.py train --config=configs/finetune/summarise.py --workdir=runs/summaries \\
    --config.data.train=train.jsonl --config.data.validation=dev.jsonl
python launch.py predict --workdir=runs/summaries --input=new.jsonl --output=summaries.jsonl

A row has a source and a target, from the columns data.source_column and data.target_column.
Evaluation generates summaries and scores them by ROUGE-1, 2 and L. Long sources are truncated. For
T5 set objective.prefix="summarize: ".
"""

from configs.finetune import translate

VARIANTS = translate.VARIANTS


def get_config(variant="encoder_decoder"):
    c = translate.get_config(variant)
    if variant == "decoder":
        c.objective.suffix = "\nTL;DR: "
    else:
        c.data.target_length = 128
    c.model.max_length = 512
    c.train.steps = 3000
    c.eval.max_new_tokens = 64
    c.eval.scores = ("rouge",)
    return c

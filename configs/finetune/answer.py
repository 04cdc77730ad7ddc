"""Extractive question answering: the span of a text (Devlin 2019, 4.2 and 4.3).

python launch.py train --config=configs/finetune/answer.py --workdir=runs/squad \\
    --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json

Data: SQuAD's JSON, or any table with columns context, question and answers. A context longer than a
row is read in windows that start every data.doc_stride tokens. If the training set has unanswerable
questions (SQuAD 2.0), the model can predict no answer.
"""

from configs.finetune import classify


def get_config():
    c = classify.get_config()
    c.objective.name = "question_answering"
    c.model.head = "span"
    c.model.pooler = False
    c.model.max_length = 384
    c.data.doc_stride = 128
    c.train.steps = 2000
    return c

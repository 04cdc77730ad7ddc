"""The span of a text that answers a question (Devlin 2019, 4.2 and 4.3).

python launch.py train --config=configs/finetune/answer.py --workdir=runs/squad \\
    --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json

SQuAD's JSON, or any table with columns context, question and answers. Of a context that is longer
than a row, windows are read that begin every data.doc_stride tokens. Where some questions of the
training set have no answer (SQuAD 2.0), the model may say so.
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

"""Direct preference optimisation (DPO; Rafailov 2023) of a pretrained decoder.

python launch.py train --config=configs/finetune/preference.py --workdir=runs/dpo \\
    --config.init_from=runs/chat --config.data.train=pairs.jsonl

A row has a prompt, a chosen answer and a rejected answer. The initial model is the reference model,
whose log-probabilities are computed once and stored in the run's reference.json.
"""

from llm_jax.config import base


def get_config():
    c = base()
    c.objective.name = "preference"
    c.objective.beta = 0.1
    c.data.packing = "none"
    c.data.batch_size = 16
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 0.1
    c.optimizer.weight_decay = 0.0
    c.train.steps = 300
    c.eval.every = 50
    return c

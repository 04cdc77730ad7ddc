"""DistilBERT: the losses of distillation, each taken away.

Masked LM as in experiments/claims/papers/__init__.py. The teacher has 4 layers, 64 wide, and 600
steps; students of one layer have 200. The effect is of the student's masked LM loss.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import encoder
from llm_jax.sweep import Sweep

STUDENT = {"model.num_layers": 1}
TRIPLE = STUDENT | {"distill.teacher": "{teacher}", "distill.soft": 0.5, "distill.hidden": 0.2}
LOSSES = {
    "teacher": {"train.steps": 600, "eval.every": 300, "checkpoint.every": 600},
    "all losses": TRIPLE,
    "no soft targets": TRIPLE | {"distill.soft": 0.0},
    "no cosine": TRIPLE | {"distill.hidden": 0.0},
    "no teacher": STUDENT,
}


def get_config():
    c = encoder()
    c.model.num_layers = 4
    c.train.steps = c.checkpoint.every = 200
    c.eval.every = 100
    return c


def get_sweep():
    return Sweep(axes=(LOSSES,), seeds=4, lengths=(), reaches=())


FULL = "configs/distilbert.py with distill.teacher"
SCOPE = "Of the pretraining loss, where theirs is of GLUE; students here begin from nothing."
CLAIMS = [
    Claim(
        paper="DistilBERT: Sanh 2019, table 4",
        says="Without the teacher's soft targets a student is worse",
        published="GLUE falls by 2.96",
        variant="all losses", against="no soft targets", full=FULL, scope=SCOPE,
    ),
    Claim(
        paper="DistilBERT: Sanh 2019, table 4",
        says="Without the cosine of hidden vectors a student is worse",
        published="GLUE falls by 1.46",
        variant="all losses", against="no cosine", full=FULL, scope=SCOPE,
    ),
    Claim(
        paper="DistilBERT: Sanh 2019, sections 2 and 5",
        says="A student learns more from a teacher than alone, in as many steps",
        published="97 % of BERT's GLUE score with 40 % fewer parameters",
        variant="all losses", against="no teacher", full=FULL, scope=SCOPE,
    ),
]  # fmt: skip

"""ALBERT: parameters shared between layers, a small table of tokens.

Masked LM over characters of tiny Shakespeare: a post-norm encoder of 4 layers, 64 wide, at one
learning rate. The vocabulary has 70 characters, so E is small beside it.
"""

from experiments.claims.claim import Claim, no_worse
from experiments.claims.papers import encoder
from llm_jax.sweep import Sweep

VARIANTS_OF = {
    "not shared": {},
    "all shared": {"model.share_layers": True},
    "E of 12": {"model.embedding_dim": 12},
}


def get_config():
    c = encoder()
    c.model.num_layers = 4
    return c


def get_sweep():
    return Sweep(axes=(VARIANTS_OF,), seeds=4, lengths=(), reaches=())


CLAIMS = [
    Claim(
        paper="ALBERT: Lan 2020, table 4",
        says="Sharing all parameters across layers costs quality",
        published="average 80.1 shared, 81.6 not shared (E = 128)",
        variant="not shared", against="all shared", full="configs/albert.py:base",
        scope="Of the pretraining loss, where theirs is of tasks behind it.",
    ),
    Claim(
        paper="ALBERT: Lan 2020, table 3",
        says="A table of an eighth of the width costs little",
        published="average 81.7 at E = 128, 82.3 at 768 (not shared)",
        variant="E of 12", against="not shared", within=no_worse(0.05),
        full="configs/albert.py:base",
        scope="A margin of 0.05 nats; of 70 symbols, where theirs are 30,000.",
    ),
]  # fmt: skip

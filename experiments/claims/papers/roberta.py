"""RoBERTa: larger batches at equally many tokens.

Masked LM over characters of tiny Shakespeare: a post-norm encoder of 2 layers, 64 wide. Batches of
24 and 96 rows see the same number of tokens, each at the better of two learning rates.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import encoder
from llm_jax.sweep import Sweep

BATCHES = {
    f"{rows} rows": {"data.batch_size": rows, "train.steps": 12000 // rows,
                     "optimizer.warmup_steps": 1200 // rows, "eval.every": 6000 // rows,
                     "checkpoint.every": 12000 // rows, "eval.max_batches": 504 // rows}
    for rows in (24, 96)
}  # fmt: skip
RATES = {f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (4e-3, 1.2e-2)}


def get_config():
    return encoder()


def get_sweep():
    return Sweep(axes=(BATCHES,), tune=RATES, seeds=4, lengths=(), reaches=())


CLAIMS = [
    Claim(
        paper="RoBERTa: Liu 2019, table 3",
        says="Larger batches lower the masked LM's loss at equally many tokens",
        published="perplexity 3.68 of 2,048 rows, 3.99 of 256",
        variant="96 rows", against="24 rows", full="configs/roberta.py:base",
        scope="Far below the critical batch size in tokens seen: a short run has few steps to "
              "give away, which a million steps have.",
    ),
]  # fmt: skip

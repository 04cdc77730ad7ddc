"""Optimizers: each at the best of four learning rates.

A decoder of 2 layers, 64 wide, over characters, as experiments/claims/papers/__init__.py has it;
weight decay 0.1 for all. The rates are four times apart.
"""

from experiments.claims.claim import Claim, no_worse
from experiments.claims.papers import decoder
from llm_jax.sweep import Sweep

NAMES = {name: {"optimizer.name": name} for name in ("adamw", "muon", "lion", "adafactor")}
RATES = {f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (1e-3, 4e-3, 1.5e-2, 6e-2)}


def get_config():
    return decoder()


def get_sweep():
    return Sweep(axes=(NAMES,), tune=RATES, seeds=4, lengths=(), reaches=())


SCOPE = "Two hundred steps: who is fastest at the beginning, not who ends lowest."
CLAIMS = [
    Claim(
        paper="Muon: Jordan 2024; Liu 2025 (Moonlight), section 3",
        says="Muon reaches a lower loss than AdamW in as many steps",
        published="1.35 times the sample efficiency; the loss of AdamW for 52 % of its FLOPs",
        variant="muon", against="adamw", full="configs/gpt2.py:124m", scope=SCOPE,
    ),
    Claim(
        paper="Lion: Chen 2023, section 4.3",
        says="Lion is at least as good as AdamW for language models",
        published="a lower perplexity in all of three sizes (figure 6)",
        variant="lion", against="adamw", within=no_worse(0.03), full="configs/gpt2.py:124m",
        scope=SCOPE,
    ),
    Claim(
        paper="Adafactor: Shazeer and Stern 2018, section 9",
        says="Adafactor is as good as Adam, with less memory",
        published="results comparable to Adam's in translation (table 2)",
        variant="adafactor", against="adamw", within=no_worse(0.03),
        full="configs/t5.py:base", scope=SCOPE + " Memory is not looked at.",
    ),
]  # fmt: skip

"""Mixture of experts: the loss by number of experts, at equal FLOPs a token.

A decoder of 2 layers, 64 wide, over characters, as experiments/claims/papers/__init__.py has it,
whose feed-forward layers are experts, one a token.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import RATES, decoder
from llm_jax.sweep import Sweep

EXPERTS = {"model.experts_per_token": 1, "model.expert_capacity": 1.25}
NUMBERS = {"1 expert": {}}
NUMBERS |= {f"{n} experts": EXPERTS | {"model.num_experts": n} for n in (4, 16)}


def get_config():
    return decoder()


def get_sweep():
    return Sweep(axes=(NUMBERS,), tune=RATES, seeds=4, lengths=(), reaches=())


FULL = "configs/switch.py:base-128"
CLAIMS = [
    Claim(
        paper="Switch Transformer: Fedus 2021, figure 1 and table 1",
        says="Experts lower the loss at equal FLOPs a token",
        published="negative log-perplexity -1.553 with 128 experts, -1.731 without",
        variant="16 experts", against="1 expert", full=FULL,
        scope="Experts need data each of their own: with a thousandth of the tokens the gain is "
              "smaller or not there yet.",
    ),
    Claim(
        paper="Switch Transformer: Fedus 2021, figure 4",
        says="More experts are better: 16 than 4",
        published="each doubling, from 1 to 256, lowers the loss at equal steps",
        variant="16 experts", against="4 experts", full=FULL,
        scope="As above.",
    ),
]  # fmt: skip

"""LLaMA: three changes to the Transformer, each taken back.

A decoder of 2 layers, 64 wide, over characters, as experiments/claims/papers/__init__.py has it.
Each variant has as many parameters (by the width of its feed-forward layers) and the better of the
rates 0.006 and 0.015. All took 0.015, so that a higher one, 0.04, is still to be tried.
"""

from experiments.claims.claim import Claim, equal
from experiments.claims.papers import RATES, decoder
from llm_jax.sweep import Sweep

VARIANTS_OF = {
    "llama": {},
    "LayerNorm": {"model.norm": "layernorm"},
    "ReLU": {"model.activation": "relu"},
    "learned positions": {"model.positions": "learned"},
    "post-norm": {"model.norm_place": "post"},
}


def get_config():
    return decoder()


def get_sweep():
    return Sweep(axes=(VARIANTS_OF,), tune=RATES, seeds=5, match="params", lengths=(), reaches=())


LLAMA = "Touvron 2023, section 2.2"
CLAIMS = [
    Claim(
        paper=f"{LLAMA}; Zhang and Sennrich 2019",
        says="RMSNorm in place of LayerNorm costs nothing in quality",
        published="on par in all of six tasks",
        variant="llama", against="LayerNorm", within=equal(0.03), full="configs/llama.py:7b",
        scope="A margin of 0.03 nats; that RMSNorm is also faster is not looked at.",
    ),
    Claim(
        paper=f"{LLAMA}; Shazeer 2020, table 1",
        says="SwiGLU is better than ReLU at equal parameters",
        published="held-out log-perplexity 1.636 against 1.677",
        variant="llama", against="ReLU", full="configs/llama.py:7b",
        scope="The sign is expected to carry over, its size not: theirs is of 220 million "
              "parameters and half a million steps.",
    ),
    Claim(
        paper=f"{LLAMA}; Su 2021, section 4.2",
        says="Rotary positions learn faster than learned absolute ones",
        published="a lower loss at all steps (figure 3)",
        variant="llama", against="learned positions", full="configs/llama.py:7b",
        scope="A short run shows how fast positions are learned, so the effect is larger here "
              "than after billions of tokens.",
    ),
    Claim(
        paper=f"{LLAMA}; Xiong 2020",
        says="Pre-norm trains better than post-norm",
        published="no warm-up needed, sooner at equal quality (figure 4)",
        variant="llama", against="post-norm", full="configs/llama.py:7b",
        scope="Of two layers; the difficulty of post-norm grows with depth.",
    ),
]  # fmt: skip

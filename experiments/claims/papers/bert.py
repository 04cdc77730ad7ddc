"""BERT: the masked LM's loss by size.

The masked LM of experiments/claims/papers/__init__.py, without dropout, all at one learning rate.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import encoder
from llm_jax.sweep import Sweep

SIZES = {
    f"{layers} layer{'s' * (layers > 1)}, {width} wide": {
        "model.num_layers": layers,
        "model.embed_dim": width,
    }
    for layers, width in ((1, 64), (2, 64), (2, 128))
}


def get_config():
    return encoder()


def get_sweep():
    return Sweep(axes=(SIZES,), seeds=5, lengths=(), reaches=())


CLAIMS = [
    Claim(
        paper="BERT: Devlin 2019, table 6",
        says="A deeper model has a lower loss: twice the layers",
        published="perplexity 5.24 of 6 layers (3 heads), 3.99 of 12 (12 heads)",
        variant="2 layers, 64 wide", against="1 layer, 64 wide", full="configs/bert.py:base",
        scope="Loss alone: that scores of tasks follow needs pretraining of another scale.",
    ),
    Claim(
        paper="BERT: Devlin 2019, table 6",
        says="A wider model has a lower loss",
        published="perplexity 3.54 at width 1,024, 3.99 at 768, both of 12 layers",
        variant="2 layers, 128 wide", against="2 layers, 64 wide", full="configs/bert.py:base",
        scope="As above.",
    ),
]  # fmt: skip

"""T5: encoder-decoder, language model and prefix language model on one task.

English to German of Multi30k as text to text: an encoder-decoder of 2 and 2 layers, 64 wide, one of
1 and 1, and a decoder alone of 2, which has the FLOPs of the first and the layers of the second; at
one learning rate. The loss is of the target's tokens alone. Trained from nothing on the task, where
T5 pretrains.

A first protocol, with normal initialisation and half the learning rate, decided neither claim.
"""

from experiments.claims.claim import Claim
from experiments.claims.papers import transformer
from llm_jax.sweep import Sweep

DECODER = {"model.kind": "decoder", "objective.name": "completion", "objective.suffix": "\n",
           "model.max_length": 96}  # fmt: skip
KINDS = {
    "encoder-decoder": {},
    "language model": DECODER,
    "encoder-decoder, 1 and 1 layers": {"model.num_layers": 1},
}


def get_config():
    c = transformer.get_config()
    c.model.norm_place = "pre"
    c.model.dropout = 0.0
    c.optimizer.learning_rate = 8e-3
    c.train.steps = c.checkpoint.every = 400
    c.objective.label_smoothing = 0.0
    c.data.packing = "none"
    return c


def get_sweep():
    return Sweep(axes=(KINDS,), seeds=4, lengths=(), reaches=())


FULL, SCOPE = "configs/t5.py:base", "Of one task without pretraining."
CLAIMS = [
    Claim(
        paper="T5: Raffel 2020, table 2",
        says="An encoder-decoder is better than a language model of as many FLOPs",
        published="EnDe BLEU 26.98 against 25.09, GLUE 83.28 against 74.70 (denoising)",
        variant="encoder-decoder", against="language model", full=FULL, scope=SCOPE,
    ),
    Claim(
        paper="T5: Raffel 2020, table 2",
        says="An encoder-decoder of half the layers is still better, with as many parameters",
        published="GLUE 80.88 against 74.70 (denoising)",
        variant="encoder-decoder, 1 and 1 layers", against="language model", full=FULL, scope=SCOPE,
    ),
]  # fmt: skip

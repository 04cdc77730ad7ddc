"""Sparse attention: windows and their sizes, dense beside sparse layers.

Decoders of 4 layers, 64 wide, over characters in rows of 256, all at one learning rate.
"""

from experiments.claims.claim import Claim, no_worse
from experiments.claims.papers import decoder
from llm_jax.sweep import Sweep

WINDOWS = "1 local window=8, 1 local window=16, 1 local window=32, 1 local window=64"
SHRINKING = ", ".join(reversed(WINDOWS.split(", ")))
KINDS = {
    "dense": {},
    "growing windows": {"model.layers": WINDOWS},
    "shrinking windows": {"model.layers": SHRINKING},
    "equal windows": {"model.attention": "local", "model.window": 30},
    "dense and window 64": {"model.layers": "1 dense, 1 local window=64"},
}


def get_config():
    c = decoder()
    c.model.max_length = 256
    c.model.num_layers = 4
    c.data.batch_size = 6
    c.optimizer.learning_rate = 6e-3
    return c


def get_sweep():
    return Sweep(axes=(KINDS,), seeds=4, lengths=(), reaches=())


CLAIMS = [
    Claim(
        paper="Longformer: Beltagy 2020, table 4",
        says="Windows that grow from layer to layer are better than windows that shrink",
        published="1.21 against 1.24 bits a character",
        variant="growing windows", against="shrinking windows",
        full="configs/gpt2.py:124m, model.layers of windows 32 to 512",
        scope="Windows of 8 to 64 here, of 32 to 512 there.",
    ),
    Claim(
        paper="Longformer: Beltagy 2020, table 4",
        says="Growing windows are better than equal ones of the same mean",
        published="1.21 against 1.23 bits a character",
        variant="growing windows", against="equal windows",
        full="configs/gpt2.py:124m, model.layers of windows 32 to 512",
        scope="As above.",
    ),
    Claim(
        paper="GPT-3: Brown 2020, section 2.1; Child 2019, table 2",
        says="Alternating dense and banded sparse layers are as good as dense ones",
        published="0.99 bits a byte with sparse (fixed), 1.00 with dense attention",
        variant="dense and window 64", against="dense", within=no_worse(0.03),
        full="configs/gpt3.py:125m",
        scope="GPT-3 gives no comparison; Child 2019's is of other patterns, at 12,288 tokens.",
    ),
]  # fmt: skip

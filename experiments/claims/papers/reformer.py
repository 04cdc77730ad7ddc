"""Reformer: LSH attention by its rounds of hashing, and reversible layers.

Decoders of 2 layers, 64 wide, over characters in rows of 256, at one learning rate; LSH attention
has chunks of 16 positions.
"""

from experiments.claims.claim import Claim, equal, no_worse
from experiments.claims.papers import decoder
from llm_jax.sweep import Sweep

LSH = {"model.attention": "lsh", "model.lsh_chunk": 16}
KINDS = {"full": {}}
KINDS |= {f"{n} round{'s' * (n > 1)}": LSH | {"model.lsh_hashes": n} for n in (1, 2, 4)}
KINDS |= {"reversible": {"model.reversible": True}}


def get_config():
    c = decoder()
    c.model.max_length = 256
    c.data.batch_size = 6
    c.optimizer.learning_rate = 6e-3
    return c


def get_sweep():
    return Sweep(axes=(KINDS,), seeds=4, lengths=(), reaches=())


FULL = "configs/reformer.py"
CLAIMS = [
    Claim(
        paper="Reformer: Kitaev 2020, table 2 and figure 4",
        says="More rounds of hashing are better: 4 than 1",
        published="copying 92.5 % with 4 rounds, 52.5 % with 1, trained with full attention",
        variant="4 rounds", against="1 round", full=FULL,
        scope="Of the loss on text, as figure 4, not of the copied words.",
    ),
    Claim(
        paper="Reformer: Kitaev 2020, figure 4",
        says="LSH attention comes up to full attention: here with 4 rounds",
        published="with 8 rounds almost full attention's loss (imagenet64)",
        variant="4 rounds", against="full", within=no_worse(0.03), full=FULL,
        scope="A margin of 0.03 nats; 16 chunks of 16 positions. Buckets are sorted over a whole "
              "row, so that the loss of LSH is not that of a strictly causal model.",
    ),
    Claim(
        paper="Reformer: Kitaev 2020, figure 3",
        says="Reversible layers learn as well as ordinary ones",
        published="the same curves (enwik8, imagenet64)",
        variant="reversible", against="full", within=equal(0.03), full=FULL,
        scope="A margin of 0.03 nats. Here the reversible model is the better one; its output "
              "matrix sees both streams, which makes 4 % more parameters.",
    ),
]  # fmt: skip

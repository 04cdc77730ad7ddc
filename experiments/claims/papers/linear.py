"""Efficient attention in an encoder: BigBird, Linformer, Nyströmformer and Performer.

Masked LM as in experiments/claims/papers/__init__.py, in rows of 256 characters: an encoder of 2
layers, 64 wide. Windows of 24 characters to each side; Linformer and Nyströmformer compress a row
to 64 vectors, Performer has 64 random features.
"""

from experiments.claims.claim import Claim, no_worse
from experiments.claims.papers import encoder
from llm_jax.sweep import Sweep

KINDS = {
    "full": {},
    "window": {"model.attention": "local", "model.window": 25},
    "bigbird": {"model.attention": "bigbird", "model.block": 16, "model.random_blocks": 1},
    "linformer": {"model.attention": "linformer", "model.landmarks": 64},
    "nystrom": {"model.attention": "nystrom", "model.landmarks": 64},
    "performer": {"model.attention": "performer", "model.random_features": 64},
}


def get_config():
    c = encoder()
    c.model.max_length = 256
    c.data.batch_size = 6
    c.data.packing = "none"  # Linformer and Nyströmformer take one document a row
    return c


def get_sweep():
    return Sweep(axes=(KINDS,), seeds=4, lengths=(), reaches=())


def close(paper, says, published, variant):
    """A claim that a kind comes close to full attention."""
    scope = "A margin of 0.05 nats, in rows of 256; cost is in experiments/attention and mixers."
    return Claim(paper, says, published, variant, "full", no_worse(0.05), scope=scope,
                 full="configs/bert.py:base with this model.attention")  # fmt: skip


CLAIMS = [
    Claim(
        paper="BigBird: Zaheer 2020, table 1",
        says="Random and global blocks beside a window are better than a window alone",
        published="masked LM 58.3 with a window, 62.7 with random blocks too, 64.2 with BERT",
        variant="bigbird", against="window", full="configs/bert.py:base with bigbird",
        scope="Near characters matter most; 49 keys a query in the window, 96 in BigBird.",
    ),
    close("BigBird: Zaheer 2020, table 1", "Window, random and global blocks come close to full "
          "attention", "62.7 (without global ones) against 64.2", "bigbird"),
    close("Linformer: Wang 2020, figure 3", "A linear map to a quarter of the length comes close "
          "to full attention", "nearly the same validation perplexity (n = 512, k = 128)",
          "linformer"),
    close("Nyströmformer: Xiong 2021, table 2", "Attention through landmarks comes close to full "
          "attention", "within 2 points in GLUE and IMDB", "nystrom"),
    close("Performer: Choromanski 2021, abstract", "Random features of softmax come close to full "
          "attention", "competitive with dense attention", "performer"),
]  # fmt: skip

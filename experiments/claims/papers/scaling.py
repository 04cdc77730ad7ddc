"""Scaling laws: the best size for a budget of FLOPs.

Decoders of 2 layers over characters of tiny Shakespeare. For each of two budgets of FLOPs, eight
times apart, four widths are trained until it is spent (6 FLOPs a parameter and token, 24 width^2
parameters, without tables), the schedule as long as the run. Of each seed alone, a parabola of the
loss over the logarithm of the size gives a budget's best size, and both sizes the exponent
(Hoffmann 2022, approach 2).
"""

import numpy as np

from experiments.claims.claim import Claim
from experiments.claims.papers import decoder
from llm_jax.sweep import Sweep

ROWS, LENGTH = 8, 64
BUDGETS = {3e10: (16, 24, 32, 48), 2.4e11: (32, 48, 64, 96)}  # FLOPs: widths


def size(width):
    return 24 * width**2


def steps(width, budget):
    return round(budget / (6 * size(width) * ROWS * LENGTH))


def label(width, budget):
    return f"{width} wide, {budget:.1e} FLOPs"


def keys(width, n):
    return {"model.embed_dim": width, "model.mlp_dim": 8 * width // 3 // 8 * 8, "train.steps": n,
            "eval.every": n, "checkpoint.every": n}  # fmt: skip


POINTS = {label(w, c): keys(w, steps(w, c)) for c, widths in BUDGETS.items() for w in widths}


def get_config():
    c = decoder()
    c.data.batch_size = ROWS
    c.eval.max_batches = 63
    c.optimizer.learning_rate = 8e-3
    return c


def get_sweep():
    return Sweep(axes=(POINTS,), seeds=4, lengths=(), reaches=())


def best_size(losses, budget):
    """The logarithm of the size at a parabola's lowest point, held within the sizes tried."""
    x = np.log([size(width) for width in BUDGETS[budget]])
    a, b, _ = np.polyfit(x, [losses[label(width, budget)] for width in BUDGETS[budget]], 2)
    lowest = -b / (2 * a) if a > 0 else x[np.argmin(np.polyval((a, b), x))]
    return np.clip(lowest, x[0], x[-1])


def exponent(losses):
    low, high = BUDGETS
    return (best_size(losses, high) - best_size(losses, low)) / np.log(high / low)


FULL = "configs/llama.py:1-65b (Chinchilla: 70B, 1.4 trillion tokens)"
CLAIMS = [
    Claim(
        paper="Kaplan 2020, section 6.1; Hoffmann 2022, section 3",
        says="The best size grows with the budget as a power of it, a above 0",
        published="a = 0.73 (Kaplan), 0.50, 0.49 and 0.46 (Hoffmann's three approaches)",
        effect=exponent, unit="(exponent a)", full=FULL,
        scope="Of two budgets, far below theirs, and of characters; sizes leave tables out.",
    ),
    Claim(
        paper="Hoffmann 2022, table 2",
        says="The exponent is nearer to Hoffmann's 0.50 than to Kaplan's 0.73",
        published="a = 0.50 (0.488 to 0.502), approach 1",
        effect=lambda losses: abs(exponent(losses) - 0.73) - abs(exponent(losses) - 0.5),
        unit="nearer", full=FULL, scope="As above.",
    ),
]  # fmt: skip

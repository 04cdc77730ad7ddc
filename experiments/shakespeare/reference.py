"""Trains nanoGPT's small setting in PyTorch, on the rows that run.py trains on, and records it.

python experiments/shakespeare/reference.py --data=tiny_shakespeare/input.txt [--rate=1e-3]

The model, its initialisation, optimizer and schedule are as nanoGPT's model.py and train.py have
them: https://github.com/karpathy/nanoGPT.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from experiments.shakespeare import run  # noqa: E402
from llm_jax import config as configs  # noqa: E402
from llm_jax import objectives  # noqa: E402
from llm_jax.data import pipeline  # noqa: E402

WARMUP, FINAL, DECAY, CLIP, BETAS = 100, 0.1, 0.1, 1.0, (0.9, 0.99)


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]: causal attention and a feed-forward layer, each behind a norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = (nn.Linear(width, n * width, bias=False) for n in (3, 1))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        heads = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]; the output matrix is the table of tokens."""

    def __init__(self, m, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, m.embed_dim)
        self.places = nn.Embedding(m.max_length, m.embed_dim)
        self.blocks = nn.Sequential(*(Block(m.embed_dim, m.num_heads) for _ in range(m.num_layers)))
        self.norm = nn.LayerNorm(m.embed_dim, bias=False)
        for name, x in self.named_parameters():
            if x.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(x, std=0.02 / (math.sqrt(2 * m.num_layers) if residual else 1))

    def forward(self, ids):
        x = self.blocks(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        return self.norm(x) @ self.tokens.weight.T


def loss(model, batch):
    """The sum of a batch's losses, and how many targets it has."""
    ids, targets, weights = (torch.tensor(np.asarray(batch[k]))
                             for k in ("tokens", "targets", "weights"))  # fmt: skip
    each = F.cross_entropy(model(ids.long()).flatten(0, 1), targets.long().flatten(),
                           reduction="none")  # fmt: skip
    return (each * weights.flatten()).sum(), weights.sum()


def rate_at(step, peak, steps):
    """nanoGPT's get_lr: a linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return peak * (step + 1) / (WARMUP + 1)
    turn = math.pi * (step - WARMUP) / (steps - WARMUP)
    return peak * (FINAL + (1 - FINAL) * (1 + math.cos(turn)) / 2)


@torch.no_grad()
def validate(model, batches):
    """The mean loss over the whole validation text."""
    sums = np.array([[float(x) for x in loss(model, batch)] for batch in batches])
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def train(config, peak):
    """Returns (step, validation loss) at each evaluation."""
    objective = objectives.get(config.objective.name)
    splits = objective.splits(config)
    tokenizer = objective.build_tokenizer(config, splits["train"])
    examples = lambda: objective.examples(tokenizer, config)
    torch.manual_seed(config.seed)
    model, steps, losses = Model(config.model, tokenizer.vocab_size), config.train.steps, []
    matrices = [x for x in model.parameters() if x.dim() > 1]
    vectors = [x for x in model.parameters() if x.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS)
    batches = pipeline.train_iterator(examples(), splits["train"])
    for step, batch in enumerate(itertools.islice(batches, steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, peak, steps)
        total, count = loss(model, batch)
        optimizer.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if (step + 1) % config.eval.every == 0:
            held_out = pipeline.eval_batches(examples(), splits["validation"])
            losses.append((step + 1, validate(model, held_out)))
            print(*losses[-1], f"{(total / count).item():.4f}", flush=True)
    return losses


def main() -> None:
    """Trains with one rate and rewrites README.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    config = configs.load("configs/shakespeare.py:small", [f"data.train={args.data}"])
    began = time.time()
    losses = train(config, args.rate)
    run.save(f"pytorch-{args.rate:g}", losses, began, code="PyTorch", variant="small",
             overrides=[], learning_rate=args.rate)  # fmt: skip
    run.write_readme()


if __name__ == "__main__":
    main()

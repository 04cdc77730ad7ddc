"""Semantic similarity: the cosine of two texts' vectors, in the order of given scores (CoSENT)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import nn

from llm_jax import models
from llm_jax.objectives import contrastive, regression, scores


class Similarity(contrastive.Contrastive):
    """Texts as of Contrastive, and a number, label; only the order of the numbers matters."""

    reads = ("text", "pair", "label")
    scalars = gold = ("label",)
    target = regression.Regression.target

    def example(self, piece, rng, elsewhere):
        label = self.target(piece) if "label" in piece else 0
        return super().example(piece, rng, elsewhere) | {"label": np.array([label])}

    def answer(self, record, rows):
        """{score}: the cosine."""
        return {"score": float(rows[0]["cosine"])}

    def score(self, records, answers):
        found = scores.correlation([*map(self.target, records)], [x["score"] for x in answers])
        return {name: found[name] for name in ("pearson", "spearman")}


def cosines(outputs, batch):
    """[B], of each row's two texts."""
    a, b, _ = jnp.moveaxis(contrastive.vectors(outputs, batch), 1, 0)
    return (a * b).sum(-1)


def losses(outputs, batch, cfg):
    """log(1 + sum of exp((cosine_j - cosine_i) / temperature) over label_i > label_j) of a batch.

    Su 2022, https://kexue.fm/archives/8847, with 1 / temperature = 20.
    """
    cosine, label = cosines(outputs, batch) / cfg.temperature, batch["label"]
    real = models.real(batch).any(1)
    ordered = (label[:, None] > label) & real[:, None] & real
    differences = jnp.where(ordered, cosine - cosine[:, None], -jnp.inf).ravel()
    total = nn.logsumexp(jnp.append(differences, 0.0)) * real.sum()
    return {"rows": total}, {"loss": (total, "rows")}


OBJECTIVE = dataclasses.replace(
    contrastive.OBJECTIVE,
    name="similarity",
    examples=Similarity,
    losses=losses,
    resolve=regression.check,
    held_out=regression.OBJECTIVE.held_out,
    predict=lambda outputs, batch: {"cosine": cosines(outputs, batch)},
)

"""Text embeddings: InfoNCE with in-batch negatives (SimCSE; Gao 2021), and CoSENT."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, nn

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data.examples import Examples, apart, joined
from llm_jax.objectives import classification, scores
from llm_jax.objectives.objective import Objective, count_rows, rows, sums

TEXTS = ("text", "pair", "negative")


class Contrastive(Examples):
    """Examples [CLS] text [SEP], followed by its pair and a hard negative, if any.

    tokens, side [T] (1, 2, 3: the text of a token; texts do not attend to each other), pooled [T]:
    side for tokens that objective.pooling includes, else 0. Each text gets an equal part of a row
    and is truncated to it.
    """

    reads = TEXTS
    fields = ("tokens", "side", "pooled")
    cut = False
    gold = TEXTS[1:]
    row = staticmethod(apart)

    def room(self, counts):
        return {"texts": (max(counts.values()) + 2, self.config.model.max_length // len(counts))}

    def example(self, piece, rng, elsewhere):
        before, behind = self.tokenizer.around("encoder")
        texts = [self.tokenizer.encode(piece[name]) for name in TEXTS if name in piece]
        room = self.config.model.max_length // len(texts) - len(before) - len(behind)
        rows = [joined(before, ids[: max(room, 0)], behind) for ids in texts]
        side = np.repeat(np.arange(1, len(rows) + 1), [*map(len, rows)])
        first = np.diff(side, prepend=0) > 0
        pooled = side * first if self.config.objective.pooling == "cls" else side
        return {"tokens": np.concatenate(rows), "side": side, "pooled": pooled}

    def answer(self, record, rows):
        """Returns {vector}, of unit length, and for pairs also {pair_vector}."""
        names = ("vector", "pair_vector")[: 1 + ("pair" in record)]
        return {name: x.tolist() for name, x in zip(names, rows[0]["vectors"], strict=False)}

    def score(self, records, answers):
        return scores.retrieval(*([x[f"{side}vector"] for x in answers] for side in ("", "pair_")))


def refuse(config):
    if not config.data.pair_column:
        raise ConfigError(f"data.pair_column='': objective.name={config.objective.name!r} needs "
                          "the column of a second text; for unsupervised SimCSE, name the column "
                          "of the first text again")


def vectors(outputs, batch):
    """Returns unit-length mean vectors over tokens with `pooled` 1, 2, 3: [B, 3, D], 0 if none."""
    of = (batch["pooled"][..., None] == jnp.arange(1, 4)).astype(jnp.float32)
    total = jnp.einsum("btd,bts->bsd", outputs.features.astype(jnp.float32), of)
    mean = total / jnp.maximum(of.sum(1), 1)[..., None]
    return mean * lax.rsqrt(jnp.square(mean).sum(-1, keepdims=True) + 1e-24)


def losses(outputs, batch, cfg):
    """InfoNCE: cross-entropy of each text's pair among all pairs and negatives of the batch.

    Logits are cosines / objective.temperature. The negatives are from the global batch, but with
    gradient accumulation from the microbatch.
    """
    found = vectors(outputs, batch)
    among = found[:, 1:].swapaxes(0, 1).reshape(-1, found.shape[-1])  # pairs, then negatives
    logits = jnp.where(among.any(-1), found[:, 0] @ among.T / cfg.temperature, -jnp.inf)
    real, own = rows(batch), jnp.arange(len(found))
    logits = jnp.where(real[:, None] > 0, logits, 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, own)
    metrics = sums({"loss": nll, "accuracy": logits.argmax(-1) == own}, real)
    return {"rows": metrics["loss"][0]}, metrics


OBJECTIVE = Objective(
    name="contrastive",
    examples=Contrastive,
    weights=count_rows,
    losses=losses,
    kinds=("encoder",),
    heads=("none",),
    needs={"data.packing": ("none",)},
    refuse=refuse,
    predict=lambda outputs, batch: {"vectors": vectors(outputs, batch)},
)


class Similarity(Contrastive):
    """Semantic similarity: texts as in Contrastive, with a number as the label.

    Only the order of the labels matters.
    """

    reads = ("text", "pair", "label")
    scalars = gold = ("label",)
    target = classification.Regression.target

    def example(self, piece, rng, elsewhere):
        label = self.target(piece) if "label" in piece else 0
        return super().example(piece, rng, elsewhere) | {"label": np.array([label])}

    def answer(self, record, rows):
        """Returns {score}, the cosine."""
        return {"score": float(rows[0]["cosine"])}

    def score(self, records, answers):
        found = scores.correlation([*map(self.target, records)], [x["score"] for x in answers])
        return {name: found[name] for name in ("pearson", "spearman")}


def cosines(outputs, batch):
    """Returns the cosine similarities [B] of each row's two texts."""
    a, b, _ = jnp.moveaxis(vectors(outputs, batch), 1, 0)
    return (a * b).sum(-1)


def order_losses(outputs, batch, cfg):
    """CoSENT: log(1 + sum over label_i > label_j of exp((cosine_j - cosine_i) / temperature)).

    Su 2022, https://kexue.fm/archives/8847, with 1 / temperature = 20.
    """
    cosine, label = cosines(outputs, batch) / cfg.temperature, batch["label"]
    real = models.real(batch).any(1)
    ordered = (label[:, None] > label) & real[:, None] & real
    differences = jnp.where(ordered, cosine - cosine[:, None], -jnp.inf).ravel()
    total = nn.logsumexp(jnp.append(differences, 0.0)) * real.sum()
    return {"rows": total}, {"loss": (total, "rows")}


SIMILARITY = dataclasses.replace(
    OBJECTIVE,
    name="similarity",
    examples=Similarity,
    losses=order_losses,
    resolve=classification.check,
    held_out=classification.REGRESSION.held_out,
    predict=lambda outputs, batch: {"cosine": cosines(outputs, batch)},
)

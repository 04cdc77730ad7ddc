"""Knowledge distillation: a student learns from a frozen teacher, another run.

Hinton 2015, https://arxiv.org/abs/1503.02531; the cosine loss on hidden states is DistilBERT's
(Sanh 2019, https://arxiv.org/abs/1910.01108, section 3).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.models import Model, Outputs
from llm_jax.objectives import Objective
from llm_jax.objectives.cross_entropy import chunk_length
from llm_jax.objectives.objective import rows
from llm_jax.train import state
from llm_jax.train.run import load_params

TEACHER = "teacher"  # batch field with the teacher's parameters
ABLE = ("classification", "causal_lm", "prefix_lm", "completion", "chat", "masked_lm", "seq2seq",
        "span_corruption")  # fmt: skip


def make_step(trainer: Any) -> Callable:
    """Returns a train step with distillation from config.distill.teacher, for train.loop.Trainer.

    Raises:
      ConfigError: no such run; its tokenizer, vocabulary, kind or labels differ from the student's,
        or its rows are shorter; an objective without soft targets.
    """
    setup, config, d = trainer.setup, trainer.config, trainer.config.distill
    setting = f"distill.teacher={d.teacher!r}"
    if config.objective.name not in ABLE or config.objective.r_drop or config.objective.mixup:
        raise ConfigError(f"objective.name={config.objective.name!r}: incompatible with {setting}; "
                          "distillation supports these, without r_drop and mixup: "
                          f"{', '.join(ABLE)}")
    try:
        teacher, tokenizer, params, _ = load_params(d.teacher, mesh=setup.mesh)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
    theirs, ours = teacher.config, config
    for what, a, b in (
        ("model.kind", theirs.model.kind, ours.model.kind),
        ("model.head", theirs.model.head, ours.model.head),
        ("data.labels", tuple(theirs.data.labels), tuple(ours.data.labels)),
        ("the tokenizer", tokenizer.pieces(), trainer.tokenizer.pieces()),
        ("model.vocab_size", theirs.model.vocab_size, ours.model.vocab_size),
    ):
        if a != b:
            raise ConfigError(f"{setting}: {what} differs from this run's" + (
                "" if what == "the tokenizer" else f" ({a!r}, {b!r})"))  # fmt: skip
    if theirs.model.max_length < ours.model.max_length:
        raise ConfigError(f"model.max_length={ours.model.max_length}: {setting} reads at most "
                          f"{theirs.model.max_length} tokens")
    if d.hidden and theirs.model.embed_dim != ours.model.embed_dim:
        raise ConfigError(f"distill.hidden={d.hidden:g}: {setting} has model.embed_dim="
                          f"{theirs.model.embed_dim}, this run {ours.model.embed_dim}; set it to 0")
    setup.objective = distilled(setup.objective, teacher.model, d)

    def step(place: Any) -> Callable:
        take = setup.train_step(place, gradients)
        return lambda state, batch, *rest: take(state, batch | {TEACHER: params}, *rest)

    return step


def gradients(loss, params, batch, key, weights, microbatches):
    """`state.gradients`, with all parameters of the teacher in each microbatch."""
    batch = dict(batch)
    theirs = batch.pop(TEACHER)
    with_teacher = lambda params, part, *rest: loss(params, part | {TEACHER: theirs}, *rest)
    return state.gradients(with_teacher, params, batch, key, weights, microbatches)


def distilled(objective: Objective, teacher: Model, d: Any) -> Objective:
    """Adds distillation losses to an objective, if a batch has the teacher's parameters.

    loss = (1 - soft) loss of the labels + soft T^2 KL(teacher | student), both at temperature T,
    + hidden (1 - cosine of the last hidden states), each normalised like the loss.
    """

    def losses(outputs, batch, cfg):
        terms, metrics = objective.losses(outputs, batch, cfg)
        if TEACHER not in batch:
            return terms, metrics
        fields = {name: x for name, x in batch.items() if name != TEACHER}
        theirs = jax.lax.stop_gradient(teacher.apply({"params": batch[TEACHER]}, fields))
        term = metrics["loss"][1]
        weight = rows(batch) if objective.classes else fields.get(
            "masked_weights", fields.get("weights"))  # fmt: skip
        soft = divergence(outputs, theirs, weight, d.temperature)
        terms = terms | {term: (1 - d.soft) * terms[term] + d.soft * d.temperature**2 * soft}
        metrics = metrics | {"soft_loss": (soft, term)}
        if d.hidden:
            apart = distance(outputs.features, theirs.features, models.real(batch))
            apart = (apart * (weight if weight.ndim == 1 else weight.sum(-1))).sum()
            terms[term] += d.hidden * apart
            metrics["hidden_loss"] = apart, term
        return terms, metrics

    return dataclasses.replace(objective, losses=losses)


def divergence(student: Outputs, teacher: Outputs, weight: jax.Array, T: float) -> jax.Array:
    """Weighted sum of KL(softmax(teacher / T) | softmax(student / T)) of the sequence head, or over
    the vocabulary, by chunks of positions.
    """
    if "sequence" in student.heads:
        return _divergence(student.heads["sequence"], teacher.heads["sequence"], weight, T)
    B, P = student.hidden.shape[:2]
    size = chunk_length(B, P, len(student.matrix))
    count = -(-P // size)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - P), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)

    @partial(jax.checkpoint, prevent_cse=False)
    def add(total, part):
        ours, theirs, weight = part
        logits = [models.logits(x._replace(hidden=h))
                  for x, h in ((student, ours), (teacher, theirs))]  # fmt: skip
        return total + _divergence(*logits, weight, T), None

    parts = cut(student.hidden), cut(teacher.hidden), cut(weight)
    return jax.lax.scan(add, jnp.zeros(()), parts)[0]


def _divergence(student, teacher, weight, T):
    targets = jax.nn.log_softmax(teacher / T)
    each = optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(student / T), targets)
    return (weight * each).sum()


def distance(x: jax.Array, y: jax.Array, real: jax.Array) -> jax.Array:
    """Cosine loss of x and y [B, T, D]: the mean of 1 - cosine over real tokens, [B]."""
    each = optax.losses.cosine_distance(x, y, epsilon=1e-6)
    return (each * real).sum(-1) / jnp.maximum(real.sum(-1), 1)

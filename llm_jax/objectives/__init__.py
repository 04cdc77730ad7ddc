"""Training objectives by name: `get(name)`; docs/extending.md adds one.

An objective has examples, built from documents with NumPy, and a loss, a pure function of model
outputs and batch. (The processes that pack batches import these files, and so JAX, which Grain
imports anyway.)

A loss consists of terms: `losses(outputs, batch, cfg)` returns their sums, `weights(batch)` their
normalisers (tokens, sentences). The loss is the sum over terms of losses / weights. Since the
weights need no model, microbatches are normalised by the whole batch, and gradient accumulation
equals the large batch.
"""

from importlib import import_module
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.objectives.objective import Objective

__all__ = ["OBJECTIVES", "Objective", "get", "suited", "tokens"]

# The first objective for a kind of model is the default of imports.
MODULES = (
    "causal_lm", "completion", "masked_lm", "bert", "classification", "tagging",
    "question_answering", "contrastive", "seq2seq", "span_corruption",
)  # fmt: skip
OBJECTIVES: dict[str, Objective] = {
    found.name: found
    for module in MODULES
    for found in vars(import_module(f"llm_jax.objectives.{module}")).values()
    if isinstance(found, Objective)
}


def get(name: str) -> Objective:
    """Returns the objective of that name; ConfigError lists the known names."""
    if name not in OBJECTIVES:
        raise ConfigError(f"objective.name={name!r}: allowed are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def suited(model: ConfigDict) -> Objective:
    """Returns the first objective for a model's kind, preferably one for its heads."""
    heads = set(model.head.split(","))
    fits = [o for o in OBJECTIVES.values() if model.kind in o.kinds]
    return next((o for o in fits if heads.issuperset(o.heads)), fits[0])


def tokens(batch: dict) -> Any:
    """Returns the number of tokens of a batch, source side included, without padding."""
    names = [side + name for side in ("", "encoder_") for name in ("segment_ids", "attention_mask")]
    masks = [batch[name] > 0 for name in names if name in batch]
    return sum(mask.sum() for mask in masks) if masks else batch["tokens"].size

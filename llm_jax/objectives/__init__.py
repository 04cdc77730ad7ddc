"""What is learned, a record each, kin in a file: `get(name)`; docs/extending.md adds one.

A record has both sides of an objective: examples, made of documents with NumPy, and the loss, a
pure function of a model's outputs and the batch. (The processes that pack batches read these files
too, and with them JAX: Grain, which they cannot do without, brings it anyway.)

A loss states its terms twice: `weights(batch)` says how much each term's mean counts over (tokens,
sentences), `losses(outputs, batch, cfg)` gives the sums. The loss is the sum over terms of losses /
weights; because the weights need no model, a batch taken in parts can be normalised as a whole, and
gradient accumulation equals the large batch.
"""

from importlib import import_module
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.objectives.objective import Objective

__all__ = ["OBJECTIVES", "Objective", "get", "suited", "tokens"]

# The first of a kind of model is what an imported one learns if nothing else is said.
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
    """Returns the objective of that name; ConfigError lists the names there are."""
    if name not in OBJECTIVES:
        raise ConfigError(f"objective.name={name!r}: allowed are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def suited(model: ConfigDict) -> Objective:
    """Returns the first objective for a model's kind, if possible one for its heads."""
    heads = set(model.head.split(","))
    fits = [o for o in OBJECTIVES.values() if model.kind in o.kinds]
    return next((o for o in fits if heads.issuperset(o.heads)), fits[0])


def tokens(batch: dict) -> Any:
    """How many tokens a model reads in a batch, padding not counted; the source side's too."""
    names = [side + name for side in ("", "encoder_") for name in ("segment_ids", "attention_mask")]
    masks = [batch[name] > 0 for name in names if name in batch]
    return sum(mask.sum() for mask in masks) if masks else batch["tokens"].size

"""What is learned: pure functions of a model's outputs and the batch.

An objective states its terms twice: `weights(batch)` says how much each term's mean counts
over (tokens, sentences), `losses(outputs, batch, cfg)` gives the sums. The loss is the sum
over terms of losses / weights; because the weights need no model, a batch taken in parts
can be normalised as a whole, and gradient accumulation equals the large batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llm_jax.objectives import causal_lm

__all__ = ["OBJECTIVES", "Objective", "get"]


class Objective(NamedTuple):
    """One way to learn.

    Attributes:
      weights: batch -> {term: scalar}.
      losses: (outputs, batch, config.objective) -> ({term: sum}, {metric: (sum, term)}), the
        metrics being means over the weight of the term that they name; one is called 'loss'.
    """

    weights: Callable[[dict], dict]
    losses: Callable[[Any, dict, Any], tuple[dict, dict]]


OBJECTIVES = {
    "causal_lm": Objective(causal_lm.weights, causal_lm.losses),
}


def get(name: str) -> Objective:
    """Returns the objective of that name; ValueError lists the names there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: allowed are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]

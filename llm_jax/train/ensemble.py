"""Ensembles: average the predicted probabilities of several runs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.models import Model, Outputs
from llm_jax.models.heads import HEADS
from llm_jax.train.run import Setup, load_params


class Ensemble:
    """Applies a model with several parameter trees, {"params": a list}, and averages its heads."""

    def __init__(self, model: Model):
        self.model, self.cfg = model, model.cfg

    def apply(self, variables: dict, batch: dict) -> Outputs:
        """Returns the first model's Outputs with averaged heads (label heads: probabilities)."""
        found = [self.model.apply({"params": one}, batch) for one in variables["params"]]

        def mean(name, *logits):
            if name not in HEADS or not HEADS[name].labels or logits[0].shape[-1] == 1:
                return sum(logits) / len(logits)
            each = jax.nn.log_softmax(jnp.stack(logits))
            return jax.nn.logsumexp(each, axis=0) - jnp.log(len(logits))

        heads = {name: mean(name, *(x.heads[name] for x in found)) for name in found[0].heads}
        return found[0]._replace(heads=heads)


def load(
    workdirs: Sequence[str], step: int | str | None = None
) -> tuple[Setup, Tokenizer, Any, int]:
    """Loads one run like `load_params`, or several as an ensemble; `step` applies to each.

    Raises:
      ConfigError: see `load_params`; or the runs differ in model, labels or tokenizer, or have no
        head to average.
    """
    setup, tokenizer, params, found = load_params(workdirs[0], step)
    if len(workdirs) == 1:
        return setup, tokenizer, params, found
    if not setup.objective.heads or setup.objective.predict is None:
        raise ConfigError(f"ensemble: objective.name={setup.objective.name!r} has no head that can "
                          "be averaged")
    members = [params]
    for workdir in workdirs[1:]:
        other, its_own, params, _ = load_params(workdir, step, setup.mesh)
        for what, a, b in (
            ("objective", setup.objective.name, other.objective.name),
            ("model", setup.config.model, other.config.model),
            ("data.labels", setup.config.data.labels, other.config.data.labels),
            ("tokenizer", tokenizer.pieces(), its_own.pieces()),
        ):
            if a != b:
                raise ConfigError(f"ensemble: {workdir}: its {what} differs from {workdirs[0]}")
        members.append(params)
    setup.model = Ensemble(setup.model)
    return setup, tokenizer, members, found

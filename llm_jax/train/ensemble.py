"""Ensembles: several runs' models as one, whose probabilities are the mean of theirs."""

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
    """A model's `apply` for the parameters of several: {"params": a list}, as of one."""

    def __init__(self, model: Model):
        self.model, self.cfg = model, model.cfg

    def apply(self, variables: dict, batch: dict) -> Outputs:
        """Outputs of the first with heads averaged: probabilities of labels, all else as it is."""
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
    """`load_params` of one run, or of several as an ensemble; `step` is asked of each.

    Raises:
      ConfigError: see `load_params`; runs that differ in model, labels or tokenizer, or that have
        no head to average.
    """
    setup, tokenizer, params, found = load_params(workdirs[0], step)
    if len(workdirs) == 1:
        return setup, tokenizer, params, found
    if not setup.objective.heads or setup.objective.predict is None:
        raise ConfigError(f"ensemble: objective.name={setup.objective.name!r} has no head whose "
                          "answers could be averaged")
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
                raise ConfigError(f"ensemble: {workdir}: its {what} is not that of {workdirs[0]}")
        members.append(params)
    setup.model = Ensemble(setup.model)
    return setup, tokenizer, members, found

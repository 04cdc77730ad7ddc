"""Preferences: direct preference optimisation (DPO; Rafailov 2023, arXiv:2305.18290)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.data.examples import apart
from llm_jax.objectives import completion
from llm_jax.objectives.cross_entropy import token_losses
from llm_jax.objectives.objective import count_rows, rows, sums

SIDES = ("chosen", "rejected")


class Preference(completion.Completion):
    """A prompt with a chosen and a rejected answer, one behind the other in a row.

    tokens, targets, weights [T] of both, as of completions; segments 1 and 2, so that neither sees
    the other. reference [2]: the log-probability of each under the model that training began with,
    a field of the record. A record of which the row cannot hold both whole is dropped.
    """

    reads = ("prompt", *SIDES)
    fields = (*completion.Completion.fields, "side")
    parts, gold = False, ()
    row, too_long = staticmethod(apart), "left out"

    @classmethod
    def lengths(cls, config):
        return super().lengths(config) | {"reference": 2}

    def room(self, counts):
        """Twice the prompt, which is cut to half a row, and both answers, each with an end."""
        longest = self.config.model.max_length
        prompt = min(counts["prompt"] + 1, longest // 2)
        return {"pairs": (2 * prompt + sum(counts[side] for side in SIDES), longest)}

    def sides(self, record):
        asked = lambda side: {"source": record["prompt"], "target": record[side]}
        return [super(Preference, self).example(asked(side), None, None) for side in SIDES]

    def example(self, piece, rng, elsewhere):
        sides = self.sides(piece)
        if any(x is None for x in sides):
            return None
        fields = {name: np.concatenate([x[name] for x in sides]) for name in sides[0]}
        fields["side"] = np.repeat([1, 2], [len(x["tokens"]) for x in sides]).astype(np.int32)
        fields["reference"] = np.array(piece.get("reference", (0, 0)), np.float32)
        return fields if len(fields["side"]) <= self.config.model.max_length else None

    def ask(self, record, new):
        """The prompt; with an answer it has to fit half a row."""
        return super().ask(record, new + self.config.model.max_length // 2)


def log_probabilities(outputs, batch):
    """Returns those of the chosen and the rejected answer, [B, 2]."""
    each = token_losses(
        outputs.hidden, outputs.matrix, batch["targets"], bias=outputs.bias, softcap=outputs.softcap
    )
    of = lambda side: -(each * batch["weights"] * (batch["side"] == side)).sum(-1)
    return jnp.stack([of(1), of(2)], axis=-1)


def losses(outputs, batch, cfg):
    """-log sigmoid(beta m), m = log p(chosen) - log p(rejected), each less the reference's (eq. 7).

    margin: beta m, which is the difference of the implicit rewards; accuracy: whether m > 0.
    """
    gain = log_probabilities(outputs, batch) - batch["reference"]
    margin = cfg.beta * (gain[:, 0] - gain[:, 1])
    each = {"loss": jax.nn.softplus(-margin), "margin": margin, "accuracy": margin > 0}
    metrics = sums(each, rows(batch))
    return {"rows": metrics["loss"][0]}, metrics


OBJECTIVE = dataclasses.replace(
    completion.OBJECTIVE,
    name="preference",
    examples=Preference,
    weights=count_rows,
    losses=losses,
    needs={"data.packing": ("none",)},
    refuse=lambda config: None,
    reference=True,
    writes=False,
)

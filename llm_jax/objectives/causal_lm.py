"""Causal language modelling and prefix language modelling."""

import dataclasses

import numpy as np

from llm_jax.data.examples import DECODER, Examples, decoder_fields
from llm_jax.objectives.cross_entropy import of_outputs
from llm_jax.objectives.objective import Objective


class CausalLM(Examples):
    """Examples of next-token prediction: tokens, targets, weights [T]."""

    fields = DECODER
    framed, overlap = True, 1

    def example(self, piece, rng, elsewhere):
        return decoder_fields(piece)


def weights(batch):
    """Returns the number of target tokens, and of those counted by accuracy."""
    return {"tokens": batch["weights"].sum(), "answers": _answers(batch).sum()}


def _answers(batch):
    return batch.get("answer_weights", batch["weights"])


def losses(outputs, batch, cfg):
    """Cross-entropy of targets [B, T] with weights [B, T], for decoders and encoder-decoders.

    Accuracy uses answer_weights [B, T] if the batch has them.
    """
    total, sums = of_outputs(outputs, batch["targets"], batch["weights"], cfg, _answers(batch))
    metrics = {"loss": (sums["loss"], "tokens"), "accuracy": (sums["correct"], "answers")}
    return {"tokens": total}, metrics


OBJECTIVE = Objective(
    name="causal_lm",
    examples=CausalLM,
    weights=weights,
    losses=losses,
    kinds=("decoder",),
    heads=("lm",),
)


class PrefixLM(CausalLM):
    """Prefix language modelling: a bidirectional prefix of uniformly random length; the rest is
    predicted (T5: Raffel 2020, 3.2.1).

    tokens, targets, weights [T] (1 after the prefix), prefix: its length.
    """

    scalars = ("prefix",)

    def example(self, piece, rng, elsewhere):
        fields = decoder_fields(piece)
        prefix = int(rng.integers(1, len(piece)))
        fields["weights"][: prefix - 1] = 0  # the last one predicts the first token after it
        return fields | {"prefix": np.array([prefix], np.int32)}


PREFIX_LM = dataclasses.replace(
    OBJECTIVE,
    name="prefix_lm",
    examples=PrefixLM,
    needs={"data.packing": ("none",)},  # the prefix must start the row
    prefix=True,
)

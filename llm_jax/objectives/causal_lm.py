"""Causal language modelling: predict the next token."""

from llm_jax.data.examples import DECODER, Examples, decoder_fields
from llm_jax.objectives.cross_entropy import of_outputs
from llm_jax.objectives.objective import Objective


class CausalLM(Examples):
    """Each token predicts the next: tokens, targets, weights [T]."""

    fields = DECODER
    framed, overlap = True, 1

    def example(self, piece, rng, elsewhere):
        return decoder_fields(piece)


def weights(batch):
    """The number of target tokens, and of those that accuracy counts."""
    return {"tokens": batch["weights"].sum(), "answers": _answers(batch).sum()}


def _answers(batch):
    return batch.get("answer_weights", batch["weights"])


def losses(outputs, batch, cfg):
    """Cross-entropy of targets [B, T] where weights [B, T]; also of a decoder on an encoder.

    Accuracy is over answer_weights [B, T] where a batch has them.
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

"""Prefix language modelling: a prefix sees itself both ways (T5: Raffel 2020, 3.2.1)."""

import dataclasses

import numpy as np

from llm_jax.data.examples import decoder_fields
from llm_jax.objectives import causal_lm


class PrefixLM(causal_lm.CausalLM):
    """A prefix of uniform length is seen both ways; what follows is predicted.

    tokens, targets, weights [T] (1 after the prefix), prefix: its length.
    """

    scalars = ("prefix",)

    def example(self, piece, rng, elsewhere):
        fields = decoder_fields(piece)
        prefix = int(rng.integers(1, len(piece)))
        fields["weights"][: prefix - 1] = 0  # the prefix's last token predicts the first after it
        return fields | {"prefix": np.array([prefix], np.int32)}


OBJECTIVE = dataclasses.replace(
    causal_lm.OBJECTIVE,
    name="prefix_lm",
    examples=PrefixLM,
    needs={"data.packing": ("none",)},  # the mask's prefix starts a row
    prefix=True,
)

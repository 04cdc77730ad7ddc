"""Predict what comes next: the causal and the prefix language model."""

import numpy as np

from llm_jax.data.transforms.base import Transform, decoder_fields, decoder_lengths


class CausalLM(Transform):
    """Each token predicts the next: tokens, targets, weights [T]."""

    framed, overlap = True, 1
    needs = {"model.kind": ("decoder",), "model.head": ("lm",)}

    @classmethod
    def lengths(cls, config):
        return decoder_lengths(config.model.max_length)

    def example(self, window, rng, elsewhere):
        return decoder_fields(window)


class PrefixLM(CausalLM):
    """A prefix of uniform length is seen both ways; what follows is predicted (T5, 3.2.1).

    tokens, targets, weights [T] (1 after the prefix), prefix: its length.
    """

    scalars = ("prefix",)
    needs = CausalLM.needs | {"data.packing": ("none",)}  # the mask's prefix starts a row

    def example(self, window, rng, elsewhere):
        fields = decoder_fields(window)
        prefix = int(rng.integers(1, len(window)))
        fields["weights"][: prefix - 1] = 0  # the prefix's last token predicts the first after it
        return fields | {"prefix": np.array([prefix], np.int32)}

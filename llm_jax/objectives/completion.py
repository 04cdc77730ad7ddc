"""Causal language modelling with masked prompts: answers, completions, an assistant's turns."""

import dataclasses

import numpy as np

from llm_jax.data.examples import Part, decoder_fields
from llm_jax.objectives import causal_lm


class Completion(causal_lm.CausalLM):
    """A causal language model whose loss and accuracy count scored parts only.

    A record has parts, or a source (the prompt) and a target, of which the second is scored; parts
    are tokenised one by one. tokens, targets, weights [T] of s = [bos] + parts + [eos], weights 1
    where the target is of a scored part; eos belongs to the last. answer_weights [T], by which
    accuracy goes, are the same but for eos. What follows the last scored token is left out, and so
    is what a row cannot hold; a document without any is dropped.
    """

    cut, parts = False, True

    @classmethod
    def columns(cls, config):
        return ("source", "target")

    @classmethod
    def lengths(cls, config):
        return super().lengths(config) | {"answer_weights": config.model.max_length}

    def example(self, piece, rng, elsewhere):
        parts = piece.get("parts") or (Part(piece["source"], False), Part(piece["target"], True))
        ids = [self.tokenizer.encode(part.text) for part in parts]
        scored = np.repeat([part.scored for part in parts], [len(part) for part in ids])
        ids = [[self.tokenizer.bos_id], *ids, [self.tokenizer.eos_id]]
        fields = decoder_fields(np.concatenate(ids))
        fields["weights"] *= np.append(scored, parts[-1].scored)
        fields["answer_weights"] = np.append(fields["weights"][:-1], np.float32(0))
        places = np.flatnonzero(fields["weights"][: self.config.model.max_length])
        return {name: x[: places[-1] + 1] for name, x in fields.items()} if len(places) else None


OBJECTIVE = dataclasses.replace(causal_lm.OBJECTIVE, name="completion", examples=Completion)

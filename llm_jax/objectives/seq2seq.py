"""Sequence to sequence: translation, summarisation, and T5's text-to-text."""

import dataclasses

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.examples import DECODER, Examples, decoder_fields
from llm_jax.objectives import causal_lm, scores
from llm_jax.objectives.completion import Completion, prompt


class Seq2Seq(Examples):
    """Examples with encoder_tokens [S] = prefix + source + suffix + [eos], target + [eos].

    tokens, targets, weights [T]; tokens start with bos (T5: pad). A source that is too long is
    truncated, but keeps eos; a target that is too long is truncated without eos. Accuracy uses
    answer_weights [T], which exclude eos.
    """

    reads = ("source", "target")
    cut, gold = False, ("target",)

    @classmethod
    def lengths(cls, config):
        longest = config.model.max_length
        target = config.data.target_length or longest
        return {"encoder_tokens": longest} | dict.fromkeys((*DECODER, "answer_weights"), target)

    def room(self, counts):
        lengths = self.lengths(self.config)
        sides = zip(("sources", "targets"), ("encoder_tokens", "targets"), strict=True)
        return {side: (counts[side[:-1]] + 1, lengths[name]) for side, name in sides}

    def example(self, piece, rng, elsewhere):
        tokenizer, lengths = self.tokenizer, self.lengths(self.config)
        source = tokenizer.encode(prompt(self.ask(piece, 0), self.config.objective))
        source = np.append(source[: lengths["encoder_tokens"] - 1], tokenizer.eos_id)
        target = [[tokenizer.bos_id], tokenizer.encode(piece.get("target", "")), [tokenizer.eos_id]]
        fields = decoder_fields(np.concatenate(target)[: lengths["targets"] + 1])
        answer = np.where(fields["targets"] == tokenizer.eos_id, np.float32(0), fields["weights"])
        return {"encoder_tokens": source, "answer_weights": answer} | fields

    def ask(self, record, new):
        """Returns the source as a prompt, truncated at its end to fit the encoder."""
        extra = len(self.tokenizer.encode(prompt("", self.config.objective))) + 1  # eos
        room = max(self.lengths(self.config)["encoder_tokens"] - extra, 0)
        ids = self.tokenizer.encode(record["source"])
        return record["source"] if len(ids) <= room else self.tokenizer.decode(ids[:room])

    score = Completion.score


def refuse(config):
    """Raises ConfigError if targets do not fit the model, or scores are unknown."""
    scores.check(config.eval.scores)
    target, longest = config.data.target_length, config.model.max_length
    if target > longest:
        raise ConfigError(f"data.target_length={target}: must be 1 to "
                          f"model.max_length={longest}, or 0 for the maximum")


OBJECTIVE = dataclasses.replace(
    causal_lm.OBJECTIVE,
    name="seq2seq",
    examples=Seq2Seq,
    kinds=("encoder_decoder",),
    refuse=refuse,
    prompt=prompt,
    writes=True,
)

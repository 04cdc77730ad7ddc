"""Sequence to sequence: translation, summaries, and T5's text-to-text."""

import dataclasses

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.examples import DECODER, Examples, decoder_fields
from llm_jax.objectives import causal_lm, scores
from llm_jax.objectives.completion import Completion, prompt


class Seq2Seq(Examples):
    """encoder_tokens [S] = prefix + source + suffix + [eos]; the decoder learns target + [eos].

    tokens, targets, weights [T], tokens starting from bos (T5: pad). A source too long for its row
    loses its end but keeps eos; a target too long is cut, and its end is not learned. Accuracy goes
    by answer_weights [T], which leave eos out.
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
        """The source as a prompt; of one too long for the encoder the end is cut off."""
        extra = len(self.tokenizer.encode(prompt("", self.config.objective))) + 1  # eos
        room = max(self.lengths(self.config)["encoder_tokens"] - extra, 0)
        ids = self.tokenizer.encode(record["source"])
        return record["source"] if len(ids) <= room else self.tokenizer.decode(ids[:room])

    score = Completion.score


def refuse(config):
    """A target must fit the model, and scores be known."""
    scores.check(config.eval.scores)
    target, longest = config.data.target_length, config.model.max_length
    if target > longest:
        raise ConfigError(f"data.target_length={target}: must be in 1 to "
                          f"model.max_length={longest}, or 0 for that")


OBJECTIVE = dataclasses.replace(
    causal_lm.OBJECTIVE,
    name="seq2seq",
    examples=Seq2Seq,
    kinds=("encoder_decoder",),
    refuse=refuse,
    prompt=prompt,
    writes=True,
)

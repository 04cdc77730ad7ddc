"""From one text to another: translation, summaries, and T5's text-to-text."""

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.transforms.base import Transform, decoder_fields, decoder_lengths


class Seq2Seq(Transform):
    """encoder_tokens [S] = objective.prefix + source + [eos]; the decoder learns target + [eos].

    tokens, targets, weights [T], tokens starting from bos (T5: pad). A source too long for its row
    loses its end but keeps eos; a target too long is cut, and its end is not learned.
    """

    pairs = True
    needs = {"model.kind": ("encoder_decoder",), "model.head": ("lm",)}

    @classmethod
    def check(cls, config):
        super().check(config)
        target, longest = config.data.target_length, config.model.max_length
        if not 0 <= target <= longest:
            raise ConfigError(f"data.target_length={target}: must be in 1 to "
                              f"model.max_length={longest}, or 0 for that")

    @classmethod
    def lengths(cls, config):
        longest = config.model.max_length
        return {"encoder_tokens": longest} | decoder_lengths(config.data.target_length or longest)

    def example(self, window, rng, elsewhere):
        source, target = window
        tokenizer, lengths = self.tokenizer, self.lengths(self.config)
        source = tokenizer.encode(self.config.objective.prefix + source)
        source = np.append(source[: lengths["encoder_tokens"] - 1], tokenizer.eos_id)
        target = [[tokenizer.bos_id], tokenizer.encode(target), [tokenizer.eos_id]]
        fields = decoder_fields(np.concatenate(target)[: lengths["targets"] + 1])
        return {"encoder_tokens": source.astype(np.int32)} | fields

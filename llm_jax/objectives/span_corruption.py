"""Span corruption: T5's denoising (Raffel 2020, 3.1.4 and 3.3.4)."""

import dataclasses
import itertools

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.examples import DECODER, Examples, decoder_fields
from llm_jax.objectives import causal_lm


def sentinel(i: int) -> str:
    """Returns the name of the i-th sentinel."""
    return f"<extra_id_{i}>"


class SpanCorruption(Examples):
    """Span corruption examples: each span is replaced by a sentinel, and the target lists them.

    encoder_tokens [S] = kept tokens and sentinels, eos; targets [T] = each sentinel and its span,
    a final sentinel, eos; tokens = [bos] (T5: pad) + targets[:-1]; weights 1. Of n tokens,
    m = round(mask_rate n) are in round(m / span_length) spans, as in the paper's code. The window
    length is chosen to fill the encoder's row. (The code omits the final sentinel, which the
    paper's text and figure 2 have.)
    """

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        count = _counts(self.stride, config.objective)[1] + 1
        self.sentinels = np.array([tokenizer.special(sentinel(i)) for i in range(count)], np.int32)

    @classmethod
    def specials(cls, config):
        # In reverse: T5's 100 sentinels follow its sentencepiece model in this order.
        count = _counts(_window(config), config.objective)[1] + 1
        return tuple(sentinel(i) for i in reversed(range(max(100, count))))

    @classmethod
    def lengths(cls, config):
        noise, spans = _counts(_window(config), config.objective)
        targets = noise + spans + 2  # the final sentinel and eos
        return {"encoder_tokens": config.model.max_length} | dict.fromkeys(DECODER, targets)

    @property
    def stride(self):
        return _window(self.config)

    def example(self, piece, rng, elsewhere):
        if len(piece) < 2:
            return None
        noise = noise_mask(len(piece), self.config.objective, rng)
        starts = noise & ~np.append(False, noise[:-1])
        nth = np.cumsum(starts) - 1  # index of the span that contains or precedes a token
        eos = [self.tokenizer.eos_id]
        kept = np.where(starts, self.sentinels[np.maximum(nth, 0)], piece)[~noise | starts]
        spans = np.insert(piece[noise], np.flatnonzero(starts[noise]), self.sentinels[nth[starts]])
        last = [self.sentinels[nth[-1] + 1]]
        target = np.concatenate([[self.tokenizer.bos_id], spans, last, eos])
        return {"encoder_tokens": np.append(kept, eos)} | decoder_fields(target)


def noise_mask(length: int, o, rng: np.random.Generator) -> np.ndarray:
    """Returns bool [length]: alternating kept and noise spans of random lengths >= 1."""
    noise, spans = _counts(length, o)
    kept = _segments(length - noise, spans, rng)
    lengths = np.stack([kept, _segments(noise, spans, rng)], axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _segments(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Returns random lengths >= 1 of `segments` parts of `items`, uniform over all partitions."""
    edges = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(np.concatenate([[0], edges, [items]]))


def _counts(length: int, o) -> tuple[int, int]:
    """Returns the numbers of (noise tokens, spans) for `length`; T5's random_spans_noise_mask."""
    noise = min(max(round(length * o.mask_rate), 1), length - 1)
    spans = min(max(round(noise / o.span_length), 1), length - noise)
    return noise, spans


def _window(config) -> int:
    """Returns the longest window that fits the encoder after corruption (random_spans_helper).

    For rates of a half and more, the target is limited to that length instead.
    """
    longest, o = config.model.max_length, config.objective
    for length in itertools.count(3):
        noise, spans = _counts(length, o)
        if max(length - noise + spans + 1, noise + spans + 2) > longest:
            return length - 1


def refuse(config):
    longest = config.model.max_length
    if longest < 4:
        raise ConfigError(f"model.max_length={longest}: span_corruption needs at least 4")


OBJECTIVE = dataclasses.replace(
    causal_lm.OBJECTIVE,
    name="span_corruption",
    examples=SpanCorruption,
    kinds=("encoder_decoder",),
    refuse=refuse,
)

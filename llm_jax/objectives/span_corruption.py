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
    """Spans of tokens become one sentinel each in the input; the target tells what they were.

    encoder_tokens [S] = kept tokens and sentinels, eos; targets [T] = each sentinel and its span,
    a last sentinel, eos; tokens = [bos] (T5: pad) + targets[:-1]; weights 1. Of n tokens,
    round(mask_rate n) fall into round(that / span_length) spans, as in the paper's code; windows
    are as long as leaves the encoder's row full. (That code leaves out the last sentinel, which
    the paper's text and figure 2 have.)
    """

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        count = _counts(self.stride, config.objective)[1] + 1
        self.sentinels = np.array([tokenizer.special(sentinel(i)) for i in range(count)], np.int32)

    @classmethod
    def specials(cls, config):
        # Last first: so T5's 100 follow its sentencepiece model in their published order.
        count = _counts(_window(config), config.objective)[1] + 1
        return tuple(sentinel(i) for i in reversed(range(max(100, count))))

    @classmethod
    def lengths(cls, config):
        noise, spans = _counts(_window(config), config.objective)
        targets = noise + spans + 2  # the last sentinel and eos
        return {"encoder_tokens": config.model.max_length} | dict.fromkeys(DECODER, targets)

    @property
    def stride(self):
        return _window(self.config)

    def example(self, piece, rng, elsewhere):
        if len(piece) < 2:
            return None
        noise = noise_mask(len(piece), self.config.objective, rng)
        starts = noise & ~np.append(False, noise[:-1])
        nth = np.cumsum(starts) - 1  # the span that a token is in, or comes after
        eos = [self.tokenizer.eos_id]
        kept = np.where(starts, self.sentinels[np.maximum(nth, 0)], piece)[~noise | starts]
        spans = np.insert(piece[noise], np.flatnonzero(starts[noise]), self.sentinels[nth[starts]])
        last = [self.sentinels[nth[-1] + 1]]
        target = np.concatenate([[self.tokenizer.bos_id], spans, last, eos])
        return {"encoder_tokens": np.append(kept, eos)} | decoder_fields(target)


def noise_mask(length: int, o, rng: np.random.Generator) -> np.ndarray:
    """Returns bool [length]: kept and noise spans by turns, of random lengths of at least 1."""
    noise, spans = _counts(length, o)
    kept = _segments(length - noise, spans, rng)
    lengths = np.stack([kept, _segments(noise, spans, rng)], axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _segments(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` parts of `items`, each of at least 1, all ways equally likely."""
    edges = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(np.concatenate([[0], edges, [items]]))


def _counts(length: int, o) -> tuple[int, int]:
    """(noise tokens, spans) among `length` tokens; T5's random_spans_noise_mask."""
    noise = min(max(round(length * o.mask_rate), 1), length - 1)
    spans = min(max(round(noise / o.span_length), 1), length - noise)
    return noise, spans


def _window(config) -> int:
    """Most tokens whose corrupted form, with eos, fits the encoder's row (random_spans_helper).

    At rates of a half and more it is the target that must not be longer than such a row.
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

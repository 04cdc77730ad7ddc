"""Masked language modelling (Devlin 2019, 3.1; RoBERTa) and replaced token detection (ELECTRA;
Clark 2020)."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data.examples import Arrays, Examples
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.objectives.cross_entropy import of_outputs
from llm_jax.objectives.objective import Objective


class Masking:
    """Masks a fraction mask_rate of the ordinary tokens of a row.

    tokens, segment_ids [T] -> masked tokens [T], and masked_positions, masked_targets (int32),
    masked_weights (float32) [P], P = ceil(mask_rate T), in order, padded with 0.
    Selects n-grams of tokens or whole words, n from 1 to `longest` with p(n) ~ 1/n (Lan 2020,
    3.1). `shares`: fractions replaced by [MASK], by a random token, and unchanged (Devlin 2019,
    3.1). Special tokens are neither selected nor used as random tokens.
    """

    def __init__(self, tokenizer: Tokenizer, config: ConfigDict, whole_word: bool = False,
                 longest: int = 1, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)):
        self.rate, self.shares, self.longest = config.objective.mask_rate, shares, longest
        self.size = math.ceil(self.rate * config.model.max_length)
        self.mask_id = mask_id(tokenizer)
        special = list(tokenizer.specials.values())
        special += [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
        self.special = np.isin(np.arange(tokenizer.vocab_size), special)
        self.ordinary = np.flatnonzero(~self.special)
        self.starts = word_starts(tokenizer) if whole_word else None

    def __call__(self, row: Arrays, rng: np.random.Generator) -> Arrays:
        tokens = row["tokens"]
        chosen = np.sort(self.choose(tokens, row["segment_ids"], rng))
        n, missing = len(chosen), (0, self.size - len(chosen))
        corrupt = tokens.copy()
        draw = rng.random(n)
        as_mask, as_random = draw < self.shares[0], draw >= 1 - self.shares[1]
        corrupt[chosen[as_mask]] = self.mask_id
        corrupt[chosen[as_random]] = rng.choice(self.ordinary, as_random.sum())
        return row | {
            "tokens": corrupt,
            "masked_positions": np.pad(chosen, missing).astype(np.int32),
            "masked_targets": np.pad(tokens[chosen], missing),
            "masked_weights": np.pad(np.ones(n, np.float32), missing),
        }

    def choose(self, tokens: np.ndarray, segments: np.ndarray, rng) -> np.ndarray:
        """Returns the positions to predict: round(mask_rate n) of the n ordinary tokens."""
        free = ~self.special[tokens] & (segments > 0)
        where = np.flatnonzero(free)
        if not len(where):
            return where
        budget = min(max(1, round(self.rate * len(where))), self.size)
        if self.starts is None and self.longest == 1:
            return rng.choice(where, budget, replace=False, shuffle=False)
        # Units (tokens or words) by the index in `where` at which each starts.
        first = np.ones(len(where), bool)
        if self.starts is not None:
            apart = np.diff(where, prepend=-2) > 1
            first = self.starts[tokens[where]] | apart | (np.diff(segments[where], prepend=0) != 0)
        edges = np.append(np.flatnonzero(first), len(where))
        spans: list[np.ndarray] = []
        for begin, end in self._ngrams(len(edges) - 1, budget, rng):
            span = where[edges[begin] : edges[end]]
            if len(span) <= budget:
                spans.append(span)
                budget -= len(span)
            if not budget:
                break
        return np.concatenate(spans) if spans else where[:0]

    def _ngrams(self, units: int, budget: int, rng) -> list[tuple[int, int]]:
        """Returns disjoint (start, end) of random n-grams of units, in random order."""
        n = np.arange(1, self.longest + 1)
        lengths = rng.choice(n, budget, p=1 / n / (1 / n).sum())
        # Enough for the budget if each unit is one token, limited by the available units.
        ends = np.cumsum(lengths)
        count = min(np.searchsorted(ends, budget) + 1, np.searchsorted(ends, units, "right"))
        count = max(int(count), 1)
        lengths = np.minimum(lengths[:count], units)
        # Disjoint spans correspond to a choice of `count` among the remaining units and spans.
        slots = units - lengths.sum() + count
        begins = np.sort(rng.choice(slots, count, replace=False))
        begins += np.cumsum(lengths) - lengths - np.arange(count)
        order = rng.permutation(count)
        return list(zip(begins[order], (begins + lengths)[order], strict=True))


class MaskedLM(Examples):
    """Masked LM examples [CLS] tokens [SEP], with dynamic masking (RoBERTa: Liu 2019, 4.1, 4.2).

    tokens [T], masked_positions, masked_targets, masked_weights [P]; see Masking.
    """

    around = 2

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        self.row = self.masking()

    def masking(self) -> Masking:
        return Masking(self.tokenizer, self.config, self.config.objective.whole_word)

    @classmethod
    def specials(cls, config):
        return ("[MASK]",)

    @classmethod
    def predicted(cls, config):
        return math.ceil(config.objective.mask_rate * config.model.max_length)

    def example(self, piece, rng, elsewhere):
        ids = [[self.tokenizer.bos_id], piece, [self.tokenizer.eos_id]]
        return {"tokens": np.concatenate(ids)}


def mask_id(tokenizer: Tokenizer) -> int:
    """Returns the id of the mask token, [MASK] or <mask>."""
    name = next((n for n in ("[MASK]", "<mask>") if n in tokenizer.specials), "[MASK]")
    return tokenizer.special(name)


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bool [V]: whether a token starts a word, according to the vocabulary.

    WordPiece marks continuations ('##ing'); other tokenizers include the preceding space in the
    first token (sentencepiece: U+2581; byte-level BPE: U+0120 or other whitespace).
    """
    pieces = tokenizer.pieces()
    if tokenizer.kind == "words":
        return np.ones(len(pieces), bool)
    if any(piece.startswith("##") and len(piece) > 2 for piece in pieces):
        return np.array([not piece.startswith("##") for piece in pieces])
    marks = ("\u2581", "\u0120", "\u010a", "\u0109", " ", "\n", "\t")
    return np.array([piece.startswith(marks) for piece in pieces])


def weights(batch):
    """Returns the number of masked positions."""
    return {"masked": batch["masked_weights"].sum()}


def losses(outputs, batch, cfg):
    """Cross-entropy of masked_targets [B, P] with masked_weights [B, P].

    outputs.hidden [B, P, D] is already gathered at masked_positions.
    """
    total, sums = of_outputs(outputs, batch["masked_targets"], batch["masked_weights"], cfg)
    metrics = {"loss": (sums["loss"], "masked"), "accuracy": (sums["correct"], "masked")}
    return {"masked": total}, metrics


OBJECTIVE = Objective(
    name="masked_lm",
    examples=MaskedLM,
    weights=weights,
    losses=losses,
    kinds=("encoder",),
    heads=("mlm",),
)


class ReplacedTokenDetection(MaskedLM):
    """ELECTRA's examples: as MaskedLM, but all selected tokens become [MASK]; the generator samples
    the replacements (Clark 2020, section 2).
    """

    def masking(self):
        return Masking(
            self.tokenizer, self.config, self.config.objective.whole_word, shares=(1.0, 0.0, 0.0)
        )


def detection_weights(batch):
    """Returns the numbers of masked positions and of tokens."""
    return weights(batch) | {"tokens": models.real(batch).sum()}


def detection_losses(outputs, batch, cfg):
    """ELECTRA's loss: the generator's masked LM loss + detection_weight x binary cross-entropy.

    The second compares heads.detection [B, T] with heads.replaced [B, T], over all real tokens.
    """
    terms, of_generator = losses(outputs, batch, cfg)
    metrics = {f"generator_{name}": value for name, value in of_generator.items()}
    scores, replaced = outputs.heads["detection"], outputs.heads["replaced"]
    real = models.real(batch)
    nll = optax.sigmoid_binary_cross_entropy(scores, replaced.astype(jnp.float32))
    nll = jnp.where(real, nll, 0).sum()
    right = ((scores > 0) == replaced) & real
    sums = {"loss": nll, "accuracy": right.sum(), "replaced": (replaced & real).sum()}
    metrics |= {name: (x.astype(jnp.float32), "tokens") for name, x in sums.items()}
    return terms | {"tokens": cfg.detection_weight * nll}, metrics


def refuse(config):
    if not config.model.generator_fraction:
        raise ConfigError("model.generator_fraction=0: objective.name='replaced_token_detection' "
                          "needs a generator; set its width as a fraction, such as 0.25")


REPLACED_TOKEN_DETECTION = dataclasses.replace(
    OBJECTIVE,
    name="replaced_token_detection",
    examples=ReplacedTokenDetection,
    weights=detection_weights,
    losses=detection_losses,
    heads=("detection",),
    refuse=refuse,
)

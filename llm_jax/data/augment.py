"""Augmentation of words in training: deletion, swaps and synonyms (EDA; Wei and Zou 2019)."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data import files
from llm_jax.data.fields import Record


def augmented(
    record: Record, names: Sequence[str], steps: Sequence[str], rng: np.random.Generator
) -> Record:
    """Returns the record with the words of the fields `names` changed by each step in turn.

    steps: data.augment; a word is what blanks are around.
      delete:P: each word is left out with probability P, but never all.
      swap:P: two words change places, for a share P of the words, about.
      synonyms:FILE:P: each word that has some is, with probability P, replaced by one of them.

    Raises:
      ConfigError: a file of synonyms that cannot be read, or has none.
    """
    record = dict(record)
    for step in steps:
        kind, _, rest = step.partition(":")
        file, _, rate = rest.rpartition(":")
        for name in names:
            if words := record.get(name, "").split():
                record[name] = " ".join(_changed(kind, words, file, float(rate), rng))
    return record


def _changed(
    kind: str, words: list[str], file: str, rate: float, rng: np.random.Generator
) -> list[str]:
    if kind == "swap":
        for _ in range(rng.binomial(len(words), rate) if len(words) > 1 else 0):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]
        return words
    drawn = rng.random(len(words)) < rate
    if kind == "delete":
        kept = [word for word, chosen in zip(words, drawn, strict=True) if not chosen]
        return kept or [words[rng.integers(len(words))]]
    table = synonyms(file)
    pairs = zip(words, drawn, strict=True)
    others = [table.get(word, ()) if chosen else () for word, chosen in pairs]
    return [str(rng.choice(x)) if x else word for word, x in zip(words, others, strict=True)]


@cache
def synonyms(file: str) -> dict[str, list[str]]:
    """Returns the other words of each word's lines; a line has synonyms with blanks between."""
    table: dict[str, list[str]] = {}
    for line in files.lines(file):
        for word in (words := line.split()):
            table.setdefault(word, []).extend(x for x in words if x != word)
    if not any(table.values()):
        raise ConfigError(f"data.augment: {file} has no line of two words, which are synonyms")
    return table

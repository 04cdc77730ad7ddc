"""Word-level data augmentation: deletion, swaps and synonyms (EDA; Wei and Zou 2019)."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data import files
from llm_jax.data.fields import Record


def augmented(
    record: Record, names: Sequence[str], steps: Sequence[str], rng: np.random.Generator
) -> Record:
    """Applies augmentation steps in sequence to the text fields `names` of a record.

    steps: data.augment; words are separated by whitespace.
      delete:P: deletes each word with probability P, but never all words.
      swap:P: swaps random pairs of words, about a fraction P of the words.
      synonyms:FILE:P: replaces each word with a synonym, if it has any, with probability P.

    Raises:
      ConfigError: the synonym file cannot be read, or has no synonyms.
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
    """Reads {word: synonyms} from a file; a line lists synonyms, separated by whitespace."""
    table: dict[str, list[str]] = {}
    for line in files.lines(file):
        for word in (words := line.split()):
            table.setdefault(word, []).extend(x for x in words if x != word)
    if not any(table.values()):
        raise ConfigError(f"data.augment: {file} has no synonyms: a line needs at least two words")
    return table

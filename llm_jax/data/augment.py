"""Data augmentation: words deleted, swapped or replaced by synonyms (EDA; Wei and Zou 2019).

Counterfactual augmentation (Lu 2018, https://arxiv.org/abs/1807.11714) swaps pairs of words.json
(he and she, in English and Chinese), with which the audit measures bias.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data import files
from llm_jax.data.fields import Record
from llm_jax.files import read_json

WORDS = Path(__file__).with_name("words.json")


def augmented(
    record: Record, names: Sequence[str], steps: Sequence[str], rng: np.random.Generator
) -> Record:
    """Applies augmentation steps in sequence to the text fields `names` of a record.

    steps: data.augment; words are separated by whitespace.
      delete:P: deletes each word with probability P, but never all words.
      swap:P: swaps random pairs of words, about a fraction P of the words.
      synonyms:FILE:P: replaces each word with a synonym, if it has any, with probability P.
      counterfactual:P: with probability P, swaps all words of pairs such as he and she.

    Raises:
      ConfigError: the synonym file cannot be read, or has no synonyms.
    """
    record = dict(record)
    for step in steps:
        kind, _, rest = step.partition(":")
        file, _, rate = rest.rpartition(":")
        if kind == "counterfactual":
            if rng.random() < float(rate):
                record |= {name: counterfactual(record[name]) for name in names if name in record}
            continue
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


def counterfactual(text: str) -> str:
    """Swaps the words of each pair in all of a text; letter case is kept."""
    pattern, table = pairs()
    return pattern.sub(lambda found: table[found[0]][0], text)


def side(text: str) -> int:
    """Returns 0 if a text has first words of pairs only, 1: only second words, -1: none or both."""
    pattern, table = pairs()
    found = {table[word][1] for word in pattern.findall(text)} - {-1}
    return found.pop() if len(found) == 1 else -1


@cache
def pairs() -> tuple[re.Pattern, dict[str, tuple[str, int]]]:
    """Returns a pattern of the words in pairs, and {word: (its counterpart, its place)}.

    Longer words that contain one, of another meaning, are their own counterpart, at place -1.
    """
    table = {}
    for lists in read_json(WORDS).values():
        table |= {word: (word, -1) for word in lists["others"]}
        for pair in lists["swaps"]:
            for a, b in (map(case, pair) for case in (str.lower, str.capitalize, str.upper)):
                table |= {a: (b, 0), b: (a, 1)}
    words = (rf"\b{word}\b" if word.isascii() else word for word in table)
    return re.compile("|".join(sorted(words, key=len, reverse=True))), table


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

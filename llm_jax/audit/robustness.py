"""Robustness: a classifier's accuracy on texts with typos, case changes, deletions and swaps."""

from collections.abc import Callable

import numpy as np

from llm_jax.audit.limit import Limit, Picture, panels
from llm_jax.audit.statistics import share
from llm_jax.audit.subject import Subject, needs
from llm_jax.data.augment import augmented
from llm_jax.sweep.figures import styles

STRENGTHS = (0.0, 0.1, 0.25, 0.5)  # fraction of words changed


def typo(word: str, rng: np.random.Generator) -> str:
    """Swaps two letters, or deletes, doubles or replaces one."""
    if len(word) < 2:
        return word
    i, other = rng.integers(len(word) - 1), chr(rng.integers(97, 123))
    a, b = word[i], word[i + 1]
    return word[:i] + (b + a, b, a + a + b, other + b)[rng.integers(4)] + word[i + 2 :]


def _each(change: Callable) -> Callable:
    """Applies a change to each word of a text with probability `strength`."""
    def changed(text, strength, rng):
        words = text.split()
        drawn = rng.random(len(words)) < strength
        return " ".join(change(x, rng) if hit else x for x, hit in zip(words, drawn, strict=True))

    return changed


def _augmented(step: str) -> Callable:
    return lambda text, strength, rng: augmented(
        {"text": text}, ("text",), (f"{step}:{strength}",), rng)["text"]


CHANGES: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "typing errors": _each(typo),
    "upper case": _each(lambda word, rng: word.upper()),
    "words left out": _augmented("delete"),
    "words swapped": _augmented("swap"),
}


def measure(subject: Subject) -> dict:
    """Measures accuracy on validation texts by kind and strength of the change."""
    records = subject.documents("validation")
    gold = subject.gold(records)
    found, curves = [], {}
    for name, change in CHANGES.items():
        for strength in STRENGTHS:
            rng = np.random.default_rng(0)
            texts = [change(record["text"], strength, rng) for record in records]
            right = subject.probabilities(texts).argmax(1) == gold
            curves.setdefault(name, []).append(float(right.mean()))
            if strength or name == next(iter(CHANGES)):
                what = f"{name}, {strength:.0%} of words" if strength else "original texts"
                found.append(share(f"accuracy, {what}", right))
    return {"figures": found, "curves": curves}


def draw(results, folder):
    with panels(folder, "robustness", len(CHANGES), 3.4) as axes:
        for ax, name in zip(axes, CHANGES, strict=True):
            for run, look in styles(results).items():
                ax.plot([100 * x for x in STRENGTHS], results[run]["curves"][name], marker="o",
                        label=run, **look)  # fmt: skip
            ax.set(xlabel="% of words", title=name, ylim=(0, 1.03))
        axes[0].set_ylabel("accuracy")
    return [Picture("robustness.png", "Accuracy on changed validation texts.")]


LIMIT = Limit(
    "robustness",
    "A classifier's accuracy on texts with typing errors, in upper case, with words left out or "
    "swapped, by strength.",
    needs("classes"),
    measure,
    draw,
)

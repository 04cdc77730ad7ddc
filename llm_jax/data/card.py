"""The data card of a prepared dataset, in Markdown: sources, cleaning, counts, lengths, labels."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from os.path import commonprefix

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import KEYS, flatten
from llm_jax.data import sources
from llm_jax.data.cleaning import PACKAGES, Cleaning, texts, words
from llm_jax.data.fields import Record
from llm_jax.record import table

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
LABELS = 20  # number of labels shown
CLIP = 160  # characters of a document shown


class Tally:
    """Streaming statistics of documents; memory grows only with the number of distinct labels.

    Attributes:
      lengths: {characters of a document, to three digits: number of documents}.
      labels: {label or tag: count}.
    """

    def __init__(self):
        self.documents = self.characters = self.words = self.tokens = 0
        self.lengths, self.labels = Counter(), Counter()

    def __call__(self, docs: Iterable[Record]) -> Iterator[Record]:
        """Counts the documents and yields them."""
        for doc in docs:
            text = "\n".join(texts(doc).values())
            size = len(text)
            self.documents += 1
            self.characters += size
            self.words += len(words(text))
            self.lengths[round(size, 3 - len(str(size)))] += 1
            self.labels.update(doc.get("tags", [doc["label"]] if "label" in doc else ()))
            yield doc

    def quantiles(self) -> list[int]:
        """Returns the lengths at QUANTILES."""
        sizes = sorted(self.lengths)
        ends = np.cumsum([self.lengths[size] for size in sizes])
        ranks = [round(q / 100 * (self.documents - 1)) for q in QUANTILES]
        return [sizes[i] for i in np.searchsorted(ends, ranks, side="right")] if sizes else []


def card(
    name: str, config: ConfigDict, cleaning: Cleaning, tallies: dict[str, tuple[Tally, Tally]]
) -> str:
    """Returns the card of a dataset; tallies: for each split, before and after cleaning."""
    flat = flatten(config)
    asked = {key: value for key, value in flat.items() if value != KEYS[key].default
             and key.startswith(("data.", "tokenizer.", "objective."))}  # fmt: skip
    parts = [
        f"# {name}",
        "Documents of `validation` and `test` are stored as read; the cleaning steps only count "
        "what they would change. Duplicates of them are removed from `train`.",
        "## Sources",
        table(["file or set", "fingerprint"], [*sources.fingerprint(config).items()]),
        "## Sizes",
        table(["split", "", "documents", "characters", "words", "tokens"],
              [[split, when, f"{tally.documents:,}", f"{tally.characters:,}", f"{tally.words:,}",
                f"{tally.tokens:,}" if tally.tokens else "–"]
               for split, both in tallies.items()
               for when, tally in zip(("read", "stored"), both, strict=True)]),
        "Quantiles of the number of characters of stored documents:",
        table(["split", *(f"{q} %" for q in QUANTILES)],
              [[split, *after.quantiles()] for split, (_, after) in tallies.items()]),
        *_labels(tallies), *_cleaning(cleaning), "## Configuration",
        f"```\n{json.dumps(asked | {'clean': [*cleaning.steps]}, indent=1, default=str)}\n```",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _labels(tallies: dict[str, tuple[Tally, Tally]]) -> list[str]:
    counts = {split: after.labels for split, (_, after) in tallies.items()}
    most = sum(counts.values(), Counter()).most_common(LABELS)
    if not most:
        return []
    share = lambda label, count: f"{count[label] / max(1, count.total()):.1%}"
    rows = [[label, *(share(label, count) for count in counts.values())] for label, _ in most]
    return ["## Labels", table(["label", *counts], rows)]


def _cleaning(cleaning: Cleaning) -> list[str]:
    parts, order = ["## Cleaning"], [*cleaning.steps]
    counts = sorted(cleaning.counts.items(), key=lambda item: order.index(item[0][0]))
    rows = [[step, split, why, f"{n:,}"] for (step, split), outcomes in counts
            for why, n in sorted(outcomes.items())]  # fmt: skip
    parts += [table(["step", "split", "did", "documents"], rows)] if rows else ["No changes."]
    for text, step in cleaning.steps.items():
        if found := getattr(step, "found", None):
            rows = [[split, tongue, f"{count:,}"] for split, counts in found.items()
                    for tongue, count in counts.most_common(LABELS)]  # fmt: skip
            parts += [f"Languages found by {text}:",
                      table(["split", "language", "documents"], rows)]  # fmt: skip
    shown = [(step, why, pair) for step in order for why, pair in cleaning.shown[step].items()]
    parts += ["\n".join(f"- {step}, {why}: {_shown(*pair)}" for step, why, pair in shown)]
    used = [PACKAGES[name] for text in cleaning.steps if (name := text.split(":")[0]) in PACKAGES]
    return [*parts, *[", ".join(f"{name} {metadata.version(name)}" for name in used)] * bool(used)]


def _shown(before: Record, after: Record | str) -> str:
    """Formats a removed document, or the changed part of a document and its replacement."""
    both = [json.dumps(x, ensure_ascii=False) for x in (before, after)]
    start = max(0, len(commonprefix(both)) - 20) if isinstance(after, dict) else 0
    clipped = [f"`{x[start : start + CLIP].replace('`', chr(39))}`" for x in both]
    return " → ".join(clipped[: 1 + isinstance(after, dict)])

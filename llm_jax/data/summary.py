"""One-line summary of a dataset: size, labels, and texts that exceed the row length."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from llm_jax.console import counted
from llm_jax.data.examples import Examples, Record
from llm_jax.data.fields import texts
from llm_jax.data.lazy import Mixture

SAMPLE = 10_000  # number of evenly spaced documents that are tokenised
SHOWN = 12  # number of labels shown


def line(examples: Examples, docs: Sequence[Record]) -> str:
    """Returns the number of documents, source fractions, label counts and texts that are too long.

    Lengths include an estimate of the special tokens.
    """
    parts = [counted(len(docs), "documents")]
    if isinstance(docs, Mixture):
        parts = [", ".join(f"{name} {share:.1%}" for name, share in docs.shares.items())]
        docs = [*docs] if all(isinstance(part, list) for part in docs.parts) else docs
    if examples.cut or not isinstance(docs, list):
        return parts[0]
    key = next((name for name in ("label", "tags") if name in docs[0]), None)
    if examples.config.data.labels and key:
        parts += _counted(docs, key)
    step = -(-len(docs) // SAMPLE)
    needs = defaultdict(list)
    for counts in _counts(examples, docs[::step]):
        for what, need in examples.room(counts).items():
            needs[what].append(need)
    for what, found in needs.items():
        beyond = sum(n > room for n, room in found)
        much = counted(beyond, what) if step == 1 else f"{beyond:,} of {counted(len(found), what)}"
        fate = f": {examples.too_long}" * bool(beyond)
        longest = f"the longest {max(found)[0]:,}"
        parts.append(f"{much} longer than {found[0][1]} tokens{fate} ({longest})")
    return "; ".join(parts)


def _counted(docs: list[Record], key: str) -> list[str]:
    labels = (doc[key] if isinstance(doc[key], list) else [doc[key]] for doc in docs)
    counts = Counter(label for some in labels for label in some)
    total, most = counts.total(), counts.most_common(SHOWN)
    shown = ", ".join(f"{name}: {count:,}" for name, count in most)
    more = f" and {counted(len(counts) - SHOWN, 'more labels')}" * (len(counts) > SHOWN)
    return [f"{shown}{more}", f"most frequent: {most[0][0]}, {most[0][1] / total:.1%}"]


def _counts(examples: Examples, docs: list[Record]) -> list[dict[str, int]]:
    """Returns the number of tokens of each text field for each document."""
    parts = [(i, name, text) for i, doc in enumerate(docs)
             for name, value in doc.items() for text in texts({name: value})]  # fmt: skip
    counts = [defaultdict(int) for _ in docs]
    lengths = map(len, examples.tokenizer.encode_batch([text for *_, text in parts]))
    for (i, name, _), n in zip(parts, lengths, strict=True):
        counts[i][name] += n
    return counts

"""What a set of documents holds, in a line: labels and their shares, and what a row cuts."""

from collections import Counter
from collections.abc import Sequence

from llm_jax.data.examples import Examples, Record
from llm_jax.data.fields import texts
from llm_jax.data.mixture import Mixture

SAMPLE = 10_000  # documents that are tokenised, spread over the set
SHOWN = 12  # labels


def line(examples: Examples, docs: Sequence[Record]) -> str:
    """Returns the number of documents, each source's share, counts of labels, texts beyond a row.

    A text is beyond a row where it has more tokens than model.max_length with a special token on
    either side of it; an objective may cut such a text, or go on in another row.
    """
    parts = [f"{len(docs):,} documents"]
    if isinstance(docs, Mixture):
        parts = [", ".join(f"{name} {share:.1%}" for name, share in docs.shares.items())]
    if examples.cut or not isinstance(docs, list):
        return parts[0]
    key = next((name for name in ("label", "tags") if name in docs[0]), None)
    if examples.config.data.labels and key:
        parts += _counted(Counter(_labels(docs, key)))
    step = -(-len(docs) // SAMPLE)
    lengths = _lengths(examples, docs[::step])
    longest = max(examples.lengths(examples.config).values())
    beyond = sum(n > longest for n in lengths)
    of = f" of {len(lengths):,}" * (step > 1)
    parts.append(f"{beyond:,}{of} longer than {longest} tokens (the longest {max(lengths):,})")
    return "; ".join(parts)


def _labels(docs: list[Record], key: str) -> list[str]:
    return [x for doc in docs for x in (doc[key] if isinstance(doc[key], list) else [doc[key]])]


def _counted(counts: Counter) -> list[str]:
    total, most = counts.total(), counts.most_common(SHOWN)
    shown = ", ".join(f"{name} {count:,}" for name, count in most)
    more = f" and {len(counts) - SHOWN} more labels" * (len(counts) > SHOWN)
    return [f"{shown}{more}", f"majority {most[0][0]} {most[0][1] / total:.1%}"]


def _lengths(examples: Examples, docs: list[Record]) -> list[int]:
    """Tokens of each document's texts, with special tokens."""
    both = "encoder_tokens" in examples.lengths(examples.config)  # a row for each
    by_doc = [texts(doc) for doc in docs]
    counts = iter([len(x) for x in examples.tokenizer.encode_batch(sum(by_doc, []))])
    each = [[next(counts) for _ in some] for some in by_doc]
    return [(max(some) if both else sum(some)) + (1 if both else len(some) + 1) for some in each]

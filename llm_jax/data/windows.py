"""Tokenised documents, cut into windows at an offset that changes with each epoch."""

from collections.abc import Sequence

import numpy as np

from llm_jax.data.tokenizers import Tokenizer

CHUNK = 1024  # documents that are tokenised together


def streams(
    tokenizer: Tokenizer, docs: Sequence[str | np.ndarray], framed: bool = True
) -> list[np.ndarray]:
    """Tokenises documents: [bos] + tokens + [eos], or the tokens alone if not `framed`.

    In the smallest integers that hold the vocabulary. Documents that are arrays are tokens already.
    """
    before, behind = ([tokenizer.bos_id], [tokenizer.eos_id]) if framed else ([], [])
    how, streams = {"dtype": tokenizer.dtype, "casting": "unsafe"}, []
    for i in range(0, len(docs), CHUNK):
        batch = docs[i : i + CHUNK]
        batch = batch if isinstance(batch[0], np.ndarray) else tokenizer.encode_batch(batch)
        streams += [np.concatenate([before, ids, behind], **how) for ids in batch]
    return streams


def cut(tokens: np.ndarray, stride: int, overlap: int, rng=None) -> list[np.ndarray]:
    """Returns windows of up to stride + overlap tokens; neighbours share `overlap` of them.

    A document longer than one window is cut from a phase that `rng` draws, else from its start.
    """
    new = len(tokens) - overlap
    phase = int(rng.integers(stride)) if rng is not None and new > stride else 0
    edges = [0, *range(stride - phase, new, stride), new]
    return [tokens[a : b + overlap] for a, b in zip(edges, edges[1:], strict=False) if a < b]


class Pool:
    """Tokenised documents, from any of which a stretch can be drawn."""

    def __init__(self, documents: list[np.ndarray]):
        self.documents = documents
        self.ends = np.cumsum([len(tokens) for tokens in documents], dtype=np.int64)

    def elsewhere(self, own: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """Returns up to n tokens from a random place outside document `own`.

        Every token outside is as likely the place; where all is one document, any in it. Fewer
        than n come only from a shorter document.
        """
        end = int(self.ends[own])
        start = end - len(self.documents[own])
        outside = int(self.ends[-1]) - (end - start)
        if outside:
            place = int(rng.integers(outside))
            place += (end - start) * (place >= start)
        else:
            place = int(rng.integers(self.ends[-1]))
        other = int(np.searchsorted(self.ends, place, side="right"))
        tokens = self.documents[other]
        place -= int(self.ends[other]) - len(tokens)
        first = max(0, min(place, len(tokens) - n))
        return tokens[first : first + n]

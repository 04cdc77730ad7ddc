"""Where documents are cut: in windows that a row can hold, from a phase that changes."""

import functools
from collections.abc import Sequence

import numpy as np

from llm_jax.data.tokenizers import Tokenizer


def stream(tokenizer: Tokenizer, text: str, framed: bool = True) -> np.ndarray:
    """Returns [bos] + tokens + [eos], int32 [n + 2], or the tokens alone if not `framed`."""
    tokens = tokenizer.encode(text)
    return _framed(tokenizer, tokens) if framed else tokens


def streams(
    tokenizer: Tokenizer, docs: Sequence[str | np.ndarray], framed: bool = True, chunk: int = 1024
) -> list[np.ndarray]:
    """Returns `stream` of every document, in the smallest integers that hold the vocabulary.

    Documents that are arrays are tokens already.
    """
    dtype = tokenizer.dtype
    found = []
    for i in range(0, len(docs), chunk):
        some = docs[i : i + chunk]
        encoded = some if isinstance(some[0], np.ndarray) else tokenizer.encode_batch(some)
        if framed:
            encoded = (_framed(tokenizer, tokens) for tokens in encoded)
        found += [tokens.astype(dtype, copy=False) for tokens in encoded]
    return found


def _framed(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    whole = np.empty(len(tokens) + 2, np.int32)
    whole[0], whole[1:-1], whole[-1] = tokenizer.bos_id, tokens, tokenizer.eos_id
    return whole


def cut(tokens: np.ndarray, stride: int, overlap: int, rng=None) -> list[np.ndarray]:
    """Returns windows of up to stride + overlap tokens; neighbours share `overlap` of them.

    A document longer than one window is cut from a phase that `rng` draws, else from its start.
    """
    new = len(tokens) - overlap
    phase = int(rng.integers(stride)) if rng is not None and new > stride else 0
    edges = [0, *range(stride - phase, new, stride), new]
    return [tokens[a : b + overlap] for a, b in zip(edges, edges[1:], strict=False) if a < b]


def excerpt(tokens: np.ndarray, place: int, n: int) -> np.ndarray:
    """Returns n tokens from `place`, or from as far before it as it takes to have so many."""
    start = max(0, min(place, len(tokens) - n))
    return tokens[start : start + n]


class Windows:
    """The windows of all documents by index, so that a shuffle of indices mixes the whole set.

    Epoch e is the indices e * len(self) to (e + 1) * len(self); its phases are a function of
    (seed, e, document), or 0 without a seed. Holds all tokens in memory, documents end to end.
    """

    def __init__(
        self, documents: list[np.ndarray], stride: int, overlap: int, seed: int | None = None
    ):
        lengths = np.array([len(tokens) for tokens in documents], np.int64)
        self.tokens = np.concatenate(documents)
        self._stride, self._overlap, self._seed = stride, overlap, seed
        self._starts, self._lengths = np.cumsum(lengths) - lengths, lengths
        self._new = lengths - overlap
        # As many slots as the worst phase needs; another phase leaves a document's last one empty.
        slots = np.where(self._new > stride, (self._new + stride - 2) // stride + 1, 1)
        self._slot_ends = np.cumsum(slots)
        self._slot_starts = self._slot_ends - slots
        self._phases = functools.lru_cache(maxsize=2)(self._draw_phases)

    def __len__(self) -> int:
        return int(self._slot_ends[-1])

    def __getitem__(self, index: int) -> np.ndarray | None:
        """Returns window `index`, as `cut` would; None where the slot is empty."""
        epoch, slot = divmod(index, len(self))
        document = self._document(slot)
        start, new = int(self._starts[document]), int(self._new[document])
        nth = slot - int(self._slot_starts[document])
        edge = nth * self._stride - self._phases(epoch)[document]
        first, last = max(edge, 0), min(edge + self._stride, new)
        return self.tokens[start + first : start + last + self._overlap] if first < last else None

    def elsewhere(self, index: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """Returns up to n tokens from a random place outside the document of window `index`.

        Every token outside is as likely the place; where all is one document, any in it.
        """
        own = self._document(index % len(self))
        start, end = int(self._starts[own]), int(self._starts[own] + self._lengths[own])
        outside = len(self.tokens) - (end - start)
        if outside:
            place = int(rng.integers(outside))
            place += (end - start) * (place >= start)
        else:
            place = int(rng.integers(len(self.tokens)))
        other = np.searchsorted(self._starts, place, side="right") - 1
        first = int(self._starts[other])
        return excerpt(self.tokens[first : first + int(self._lengths[other])], place - first, n)

    def _document(self, slot: int) -> int:
        return int(np.searchsorted(self._slot_ends, slot, side="right"))

    def _draw_phases(self, epoch: int) -> list[int]:
        if self._seed is None:
            return [0] * len(self._new)
        rng = np.random.default_rng((self._seed, epoch))
        phases = rng.integers(self._stride, size=len(self._new))
        return np.where(self._new > self._stride, phases, 0).tolist()

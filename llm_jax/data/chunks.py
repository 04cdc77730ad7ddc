"""Shuffling, windowing and packing of documents into rows, by chunks.

Documents are shuffled globally by a permutation that is computed per index (Grain's Feistel
cipher), so that datasets of any size start immediately, without a list of indices in memory.
"""

import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np

from llm_jax.data import lengths
from llm_jax.data.augment import augmented
from llm_jax.data.examples import Arrays, Examples, Record
from llm_jax.data.lazy import Lazy, Mixture, permuted, tokens_about
from llm_jax.data.tokenizers import Tokenizer

TOGETHER = 1024  # documents tokenised in one call
CHUNK = 2**21  # approximate tokens of a chunk, which is packed together, and read again on resuming

DOCUMENT = "document"  # batch field in evaluation: document index of each row
FIRST = "first"  # example field: whether it is the first of its document
DRAWN = "drawn"  # row field of a mixture: documents and tokens per source, [2, sources]
SEGMENTED = {"tokens": "", "encoder_tokens": "encoder_"}  # field: prefix of segments and positions
_IDS = ("tokens", "targets", "encoder_tokens")  # padded with pad_id; other fields with 0


def streams(
    tokenizer: Tokenizer, docs: Sequence[str | np.ndarray], framed: bool = True
) -> list[np.ndarray]:
    """Tokenises documents: [bos] + tokens + [eos], or the tokens only if not `framed`.

    Returns the smallest integer dtype for the vocabulary. Arrays are taken as tokens.
    """
    before, behind = ([tokenizer.bos_id], [tokenizer.eos_id]) if framed else ([], [])
    how, streams = {"dtype": tokenizer.dtype, "casting": "unsafe"}, []
    for i in range(0, len(docs), TOGETHER):
        batch = docs[i : i + TOGETHER]
        batch = batch if isinstance(batch[0], np.ndarray) else tokenizer.encode_batch(batch)
        streams += [np.concatenate([before, ids, behind], **how) for ids in batch]
    return streams


def cut(tokens: np.ndarray, stride: int, overlap: int, rng=None) -> list[np.ndarray]:
    """Returns windows of up to stride + overlap tokens; adjacent windows share `overlap` tokens.

    With `rng`, a document longer than a window is cut with a random phase, else from its start.
    """
    new = len(tokens) - overlap
    phase = int(rng.integers(stride)) if rng is not None and new > stride else 0
    edges = [0, *range(stride - phase, new, stride), new]
    return [tokens[a : b + overlap] for a, b in zip(edges, edges[1:], strict=False) if a < b]


class Pool:
    """Tokenised documents, from which random sequences can be drawn."""

    def __init__(self, documents: list[np.ndarray]):
        self.documents = documents
        self.ends = np.cumsum([len(tokens) for tokens in documents], dtype=np.int64)

    def elsewhere(self, own: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """Returns up to n tokens from a uniformly random position outside document `own`.

        If there is only one document, any position in it. Fewer than n tokens are returned only
        from shorter documents.
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


def padding(name: str, pad_id: int) -> int:
    """Returns the padding value of a batch field."""
    return pad_id if name in _IDS else 0


class Chunks:
    """Chunks of shuffled documents: chunk c of epoch e is number e * len(self) + c.

    A chunk is a function of (seed, number). Without a seed: documents in order, for one epoch. A
    chunk has at least two documents, if possible. Tokens of in-memory documents are cached: `held`.
    """

    def __init__(self, examples: Examples, docs: Sequence[Record], seed: int | None = None):
        self._examples, self._docs, self._seed = examples, docs, seed
        # Predictions are matched to documents by number.
        single = examples.config.data.packing == "none" and not examples.cut
        self._scalars = (*examples.scalars, *[DOCUMENT] * (seed is None and single))
        self.lengths = examples.lengths(examples.config) | dict.fromkeys(self._scalars, 1)
        trains = bool(examples.augments) and seed is not None
        self._steps = examples.config.data.augment if trains else ()
        augmented({"text": "a"}, ("text",), self._steps, np.random.default_rng(0))  # reads files
        pad_id = examples.tokenizer.pad_id
        self._padding = {name: padding(name, pad_id) for name in self.lengths}
        self.held = self._pool(docs) if examples.cut and isinstance(docs, list) else None
        size = tokens_about(docs) if self.held is None else int(self.held.ends[-1])
        self._count = max(1, min(round(size / CHUNK), len(docs) // 2))

    def __len__(self) -> int:
        return self._count

    def rows(self, number: int) -> "Rows":
        """Returns the packed rows of a chunk."""
        epoch, nth = divmod(number, len(self))
        count, seed = len(self._docs), self._seed
        places = range(nth * count // len(self), (nth + 1) * count // len(self))
        if seed is not None:
            places = [permuted(place, count, seed + epoch) for place in places]
        if isinstance(self._docs, Mixture):  # places continue across epochs
            places = [epoch * count + place for place in places]
        rng = np.random.default_rng((seed or 0, number))
        shuffled = lambda x: x if seed is None else [x[i] for i in rng.permutation(len(x))]
        examples = shuffled(self._made(places, rng))
        most = 1 if self._examples.config.data.packing == "none" else 0
        needs = [[len(example[name]) for name in self.lengths] for example in examples]
        needs = np.array(needs, np.int64).reshape(len(examples), len(self.lengths))
        # First-fit leaves the first rows fullest.
        packed = shuffled(first_fit(needs, list(self.lengths.values()), most))
        if seed is not None and lengths.vary(self._examples.config):
            batch, order = self._examples.config.data.batch_size, [i for (i,) in packed]
            first = -number * len(order) % batch  # if all chunks have this length
            packed = [[i] for i in lengths.alike(order, needs.sum(1), batch, first, rng)]

        def row(i: int) -> Arrays:
            own, some = (seed or 0, number, i), [examples[j] for j in packed[i]]
            return self.row(some, np.random.default_rng(own)) | self._drawn(some)

        return Rows(len(packed), row)

    def _drawn(self, examples: list[Arrays]) -> Arrays:
        """Counts documents and tokens of a row per source; a document counts where it starts."""
        if not isinstance(self._docs, Mixture):
            return {}
        sources = [self._docs.source(int(example[DOCUMENT][0])) for example in examples]
        firsts = [example[FIRST][0] for example in examples]
        tokens = [sum(len(x[name]) for name in SEGMENTED if name in x) for x in examples]
        counts = [np.bincount(sources, w, len(self._docs.shares)) for w in (firsts, tokens)]
        return {DRAWN: np.array(counts, np.int64)}

    def row(self, examples: list[Arrays], rng: np.random.Generator) -> Arrays:
        """Packs examples into a row with segment ids, and applies the objective's `row`."""
        row = {}
        for name, length in self.lengths.items():
            parts = [example[name] for example in examples]
            row[name] = _filled(parts, length, self._padding[name])
            if name in SEGMENTED:
                sizes, prefix = [len(part) for part in parts], SEGMENTED[name]
                ids = [np.full(n, k, np.int32) for k, n in enumerate(sizes, start=1)]
                row[f"{prefix}segment_ids"] = _filled(ids, length, 0)
                row[f"{prefix}positions"] = _filled([*map(np.arange, sizes)], length, 0)
        row |= {name: row[name][0] for name in self._scalars}
        return row if self._examples.row is None else self._examples.row(row, rng)

    def _pool(self, docs: list[Record]) -> Pool:
        texts = [doc["tokens"] if "tokens" in doc else doc["text"] for doc in docs]
        return Pool(streams(self._examples.tokenizer, texts, self._examples.framed))

    def _made(self, places: Sequence[int], rng: np.random.Generator) -> list[Arrays]:
        examples, docs, pool = self._examples, self._docs, self.held
        if pool is None:
            docs = docs.read(places) if isinstance(docs, Lazy) else [docs[i] for i in places]
            if self._steps:
                docs = [augmented(doc, examples.augments, self._steps, rng) for doc in docs]
        if not examples.cut:
            made = (examples.examples(doc, rng, None) for doc in docs)
        else:
            pool, own = (self._pool(docs), range(len(docs))) if pool is None else (pool, places)
            made = (self._cut(pool, i, rng) for i in own)
        return [x | {DOCUMENT: np.array([place]), FIRST: np.array([not nth])}
                for place, some in zip(places, made, strict=True)
                for nth, x in enumerate(some)]  # fmt: skip

    def _cut(self, pool: Pool, i: int, rng: np.random.Generator) -> list[Arrays]:
        """Returns the examples of a document's windows."""
        examples, elsewhere = self._examples, functools.partial(pool.elsewhere, i, rng=rng)
        phases = None if self._seed is None else rng
        windows = cut(pool.documents[i], examples.stride, examples.overlap, phases)
        return [x for window in windows for x in examples.examples(window, rng, elsewhere)]


class Rows(Sequence):
    """Packed rows of a chunk, built on access."""

    def __init__(self, count: int, get: Callable[[int], Arrays]):
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Arrays:
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._get(i)


class Makers:
    """Prefetches chunks in a thread, or in `workers` processes."""

    def __init__(self, chunks: Chunks, workers: int = 0):
        self.chunks, self.count = chunks, max(1, workers)
        if workers:
            spawn = multiprocessing.get_context("spawn")  # a fork would copy accelerator threads
            options = {"mp_context": spawn, "initializer": _serve, "initargs": (chunks,)}
            self._pool, self._make = ProcessPoolExecutor(workers, **options), _make
        else:
            self._pool, self._make = ThreadPoolExecutor(1), chunks.rows
        # Runs before interpreter shutdown, during which the pool could not stop.
        self.close = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def start(self, number: int) -> Future[Sequence[Arrays]]:
        """Starts building a chunk; returns a future of its packed rows."""
        return self._pool.submit(self._make, number)


def _serve(chunks: Chunks) -> None:
    """Initialises a worker, which ends with its parent process, and not on signals."""
    global _chunks
    _chunks = chunks
    # Signals to the whole job are handled by the parent, which still has to save.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(number: int) -> Rows:
    """Returns the rows of a chunk as one array per field, which is fast to transfer."""
    rows = list(_chunks.rows(number))
    fields = {name: np.stack([row[name] for row in rows]) for name in (rows or [{}])[0]}
    return Rows(len(rows), functools.partial(_at, fields))


def _at(fields: Arrays, i: int) -> Arrays:
    return {name: values[i] for name, values in fields.items()}


def _filled(parts: list[np.ndarray], length: int, padding: int) -> np.ndarray:
    dtype = np.float32 if parts[0].dtype.kind == "f" else np.int32
    rest = np.full(length - sum(map(len, parts)), padding)
    return np.concatenate([*parts, rest], dtype=dtype, casting="unsafe")


def first_fit(needs: np.ndarray, room: Sequence[int], most: int = 0) -> list[list[int]]:
    """First-fit packing: returns the example indices of each row.

    Args:
      needs: [n, fields] lengths, at most `room`, the capacity of a row.
      most: maximum examples per row; 0: unlimited.
    """
    if most == 1:
        return [[i] for i in range(len(needs))]
    # Drop fields with the same lengths and capacity as another.
    columns = np.unique(np.concatenate([needs, [room]]), axis=1)
    needs, room = columns[:-1], columns[-1]
    if (needs > room).any():
        raise ValueError(f"an example of {needs.max(0)} tokens does not fit a row of {room}")
    free = np.repeat(room[:, None], len(needs) + 1, axis=1)  # remaining capacity of each row
    first, rows = 0, []
    for i, need in enumerate(needs):
        fits = free[0, first : len(rows) + 1] >= need[0]
        for column, n in zip(free[1:], need[1:], strict=True):
            fits &= column[first : len(rows) + 1] >= n
        row = first + int(fits.argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        free[:, row] -= need
        while first < len(rows) and (free[:, first] == 0).any():
            first += 1
    return rows

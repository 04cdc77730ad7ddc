"""Documents to batches: tokenise, cut in windows, shuffle, pack, batch."""

import atexit
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import sources, tokenizers
from llm_jax.data.batches import Batches, Rows
from llm_jax.data.chunks import Chunks, Workers
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.data.transforms import Transform, objective
from llm_jax.data.windows import Windows, streams

Batch = dict[str, np.ndarray]

BINS = 64  # rows packed at a time: more of them waste less padding, but restore more slowly
PREFETCH = 4  # batches made ahead of the step that wants them

_PACKER_NAMES = {  # what Grain's packer calls them: what a batch calls them
    "tokens_segment_ids": "segment_ids",
    "tokens_positions": "positions",
    "encoder_tokens_segment_ids": "encoder_segment_ids",
    "encoder_tokens_positions": "encoder_positions",
}
_IDS = ("tokens", "targets", "encoder_tokens")  # padded with pad_id, all else with 0


def check_vocab(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises ConfigError when the tokenizer has more ids than the model has embeddings."""
    if 0 < config.model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer's "
            f"{tokenizer.vocab_size}; use 0 (the tokenizer's own) or at least that"
        )


def build_tokenizer(config: ConfigDict, docs: Sequence) -> Tokenizer:
    """Trains or opens the tokenizer that the config describes, with what its objective needs."""
    if isinstance(docs, sources.Tokens) and config.tokenizer.name not in tokenizers.UNTRAINED:
        return docs.its_own(config.tokenizer)
    needed = objective(config).specials(config)
    return tokenizers.build(config.tokenizer, sources.texts(docs), needed)


def train_iterator(
    config: ConfigDict,
    tokenizer: Tokenizer,
    docs: Sequence[str],
    rows: Rows = slice,
) -> grain.DatasetIterator:
    """Returns endless batches, [batch_size, max_length] a field, of which it holds `rows`.

    Each epoch has a fresh order and fresh cuts, all decided by config.seed. `get_state()` is what
    JSON can hold and stands exactly behind the last batch returned; `set_state()` continues there.
    Every process of a job packs the streams that its rows come from, of data.shards, so that
    batches, and the union of the states, are the same for any number of processes.
    """
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    what, shards = _transform(config, tokenizer), config.data.shards
    packed = _packed(what, docs, "data.train", seed, shards)
    return _Prefetch(Batches(config.data, lambda shard: iter(packed(shard)), rows), PREFETCH)


class _Prefetch(grain.experimental.ThreadPrefetchDatasetIterator):
    """Grain's, made safe to be still at work when Python shuts down."""

    alive = weakref.WeakSet()

    def __init__(self, batches: Batches, size: int):
        super().__init__(batches, size)
        self._batches = batches
        self.alive.add(self)

    def close(self):
        super().close()
        self._batches.close()  # Grain closes only what is its own

    def __del__(self, finalizing=sys.is_finalizing):
        if not finalizing():  # else Grain's own modules may be gone
            super().__del__()


@atexit.register
def _close_all() -> None:
    # A thread that is inside C++ when the interpreter goes would abort the process.
    for iterator in list(_Prefetch.alive):
        iterator.close()


class EvalBatches:
    """Batches that cover the documents once, in order; each iteration starts from the first."""

    def __init__(self, packed: grain.IterDataset, size: int, rows: Rows, pad_id: int):
        # Every process packs the whole set and keeps its rows, so that all agree on the count.
        self._batches = packed.batch(size, drop_remainder=False)
        self._size, self._mine, self._pad_id = size, rows(size), pad_id

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield {name: self._fill(name, rows)[self._mine] for name, rows in batch.items()}

    def _fill(self, name: str, rows: np.ndarray) -> np.ndarray:
        missing = [(0, self._size - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
        return np.pad(rows, missing, constant_values=_padding(name, self._pad_id))


def eval_batches(
    config: ConfigDict,
    tokenizer: Tokenizer,
    docs: Sequence[str],
    rows: Rows = slice,
) -> EvalBatches:
    """Returns `rows` of the batches that cover `docs` once, in order.

    Every process sees equally many batches; the last is filled up with rows of weight 0.
    """
    packed = _packed(_transform(config, tokenizer), docs, "data.validation")(0)
    return EvalBatches(packed, config.data.batch_size, rows, tokenizer.pad_id)


def row_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of a row in each field of a batch, found by making one of bytes."""
    config = ConfigDict(config.to_dict())
    config.model.vocab_size, config.data.batch_size = 0, 1
    what = objective(config)
    tokenizer = tokenizers.Bytes(what.specials(config))
    text = "a word. " * (config.model.max_length // 4 + 4)
    batch = next(iter(eval_batches(config, tokenizer, [("a", "b") if what.pairs else text])))
    return {name: (values.shape[1:], values.dtype) for name, values in batch.items()}


def _transform(config: ConfigDict, tokenizer: Tokenizer) -> Transform:
    check_vocab(config, tokenizer)
    return objective(config)(tokenizer, config)


def _packed(
    what: Transform, docs, key: str, seed=None, shards: int = 1
) -> Callable[[int], grain.IterDataset]:
    """A shard's packed rows of `docs`: once, in order, or with a seed shuffled and without end."""
    if not len(docs):
        raise ConfigError(f"{key}: there are no documents; name a file, or hold out a share with "
                          "data.validation_fraction")
    packing = what.config.data.packing
    if packing not in ("first_fit", "none"):
        raise ConfigError(f"data.packing: {packing!r} must be first_fit or none")
    if isinstance(docs, sources.Tokens):
        docs.check(what.tokenizer, key)
    if what.pairs or isinstance(docs, list):
        if shards > 1:
            raise ConfigError(f"data.shards={shards}: pairs, and text that is held in memory, are "
                              "one stream; set 1")
        rows = _finish(_pack(_examples(what, docs, key, seed), what, seed), what, seed)
        return lambda _: rows
    return _read_as_needed(what, docs, seed, shards)


def _examples(what: Transform, docs, key, seed=None) -> grain.IterDataset:
    """Examples of pairs, or of documents that are in memory."""

    def make_pair(pair, rng):
        return what.example(pair, rng, None)

    def make(found, rng):
        index, window = found
        return what.example(window, rng, lambda n: windows.elsewhere(index, n, rng))

    def window_at(index, _):
        window = windows[index]
        return None if window is None else (index, window)

    in_memory = isinstance(docs, list)
    if what.pairs:
        examples = grain.MapDataset.source(docs).random_map(make_pair, seed=seed or 0)
    else:
        stride = what.stride
        windows = Windows(streams(what.tokenizer, docs, what.framed), stride, what.overlap, seed)
        if seed is not None and len(windows.tokens) < stride:
            raise ConfigError(f"{key}: {len(windows.tokens)} tokens do not fill one row of "
                              f"model.max_length = {what.config.model.max_length}; use more text "
                              "or shorter rows")
        examples = grain.MapDataset.range(len(windows)).map_with_index(window_at)
        examples = examples.random_map(make, seed=seed or 0)
    threads, ahead = (0, 0) if in_memory else (4, 64)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    if seed is not None:
        examples = examples.shuffle(seed).repeat()
    return examples.to_iter_dataset(read)


def _read_as_needed(
    what: Transform, docs: sources.Lazy, seed, shards: int
) -> Callable[[int], grain.IterDataset]:
    """Rows of documents that are read a chunk at a time, the next while one is used.

    A shard has every so many-th chunk.
    """
    padding = {name: _padding(name, what.tokenizer.pad_id) for name in _lengths(what)}
    chunks = Chunks(what, docs, padding, seed)
    numbers = grain.MapDataset.range(len(chunks))
    workers = 0 if seed is None else what.config.data.workers
    made = Workers(chunks, workers) if workers else chunks
    ahead = max(1, workers)
    read = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)

    def stream(shard):
        rows = numbers.map_with_index(lambda number, _: made.rows(number * shards + shard))
        if seed is not None:
            rows = rows.repeat()
        return grain.experimental.FlatMapIterDataset(rows.to_iter_dataset(read), _Flatten())

    return stream


class _Flatten(grain.experimental.FlatMapTransform):
    def flat_map(self, element):
        return element


def _pack(examples, what: Transform, seed=None) -> grain.IterDataset:
    """Rows of fixed length, each of several examples (or one) under segment ids 1, 2, …; 0 pads."""
    lengths = _lengths(what)
    packed = grain.experimental.FirstFitPackIterDataset(
        examples,
        length_struct=lengths,
        padding_struct={name: _padding(name, what.tokenizer.pad_id) for name in lengths},
        meta_features=[name for name in lengths if f"{name}_positions" not in _PACKER_NAMES],
        num_packing_bins=BINS,
        shuffle_bins=seed is not None,
        seed=seed or 0,
        max_sequences_per_bin=1 if what.config.data.packing == "none" else None,
    )
    return packed.map(lambda row: {_PACKER_NAMES.get(k, k): values for k, values in row.items()})


def _finish(rows: grain.IterDataset, what: Transform, seed=None) -> grain.IterDataset:
    """What the objective draws for a whole row is decided by seed and the row's number."""
    rows = rows.map(lambda row: row | {name: row[name][0] for name in what.scalars})
    if what.row is None:
        return rows
    draws = 0 if seed is None else np.random.SeedSequence((seed, 0)).generate_state(1)[0]
    return rows.random_map(what.row, seed=int(draws))


def _lengths(what: Transform) -> dict[str, int]:
    return what.lengths(what.config) | dict.fromkeys(what.scalars, 1)


def _padding(name: str, pad_id: int) -> int:
    return pad_id if name in _IDS else 0

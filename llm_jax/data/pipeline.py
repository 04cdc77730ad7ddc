"""Input pipeline: tokenises, windows, shuffles, packs and batches documents."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import fields, lazy, lengths, sources, tokenizers
from llm_jax.data.batches import Batches, Rows, Stream
from llm_jax.data.chunks import Chunks, Makers, padding
from llm_jax.data.examples import Examples, Record
from llm_jax.data.sampled import Sampled
from llm_jax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]

AHEAD = 4  # number of prefetched batches


def check_vocab(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if the tokenizer has more ids than the model has embeddings."""
    if 0 < config.model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(f"model.vocab_size={config.model.vocab_size}: is smaller than the "
                          f"tokenizer's {tokenizer.vocab_size}; set 0 (the tokenizer's) or at "
                          "least that")


def build_tokenizer(
    config: ConfigDict, documents: Sequence[Record], specials: Sequence[str] = ()
) -> Tokenizer:
    """Trains or opens the config's tokenizer, with the special tokens of its objective."""
    if isinstance(documents, lazy.Tokens) and config.tokenizer.name not in tokenizers.UNTRAINED:
        return documents.its_own(config.tokenizer)
    return tokenizers.build(config.tokenizer, sources.texts(documents), specials)


def train_iterator(examples: Examples, documents: Sequence[Record], rows: Rows = slice) -> Batches:
    """Returns an infinite iterator over batches, `rows` of [batch_size, max_length] per field.

    Each epoch has a new order and new windows; with privacy.clip, each step samples documents
    (`Sampled`). All randomness derives from config.seed. `get_state()` is JSON and describes the
    position after the last batch; `set_state()` continues there. Each process packs the streams of
    its own rows, out of data.shards, so that batches and the union of the states are the same for
    any number of processes.
    """
    data = examples.config.data
    seed = int(np.random.SeedSequence(examples.config.seed).generate_state(1)[0])
    kind = Sampled if examples.config.privacy.clip else Chunks
    chunks = _chunks(examples, documents, "data.train", seed, kind)
    makers = Makers(chunks, data.workers)
    streams = lambda shard: Stream(makers, shard, data.shards)
    trims = lengths.vary(examples.config)
    return Batches(data, streams, rows, makers.close, AHEAD, trims)


class EvalBatches:
    """Iterable over batches that cover the documents once, in order."""

    def __init__(self, examples: Examples, documents: Sequence[Record], chunks: Chunks, rows: Rows):
        self.examples, self.documents = examples, documents
        size, pad_id = examples.config.data.batch_size, examples.tokenizer.pad_id
        # Every process packs the whole dataset and keeps its rows, so that all agree on the count.
        self._chunks, self._size, self._mine, self._pad_id = chunks, size, rows(size), pad_id

    def __iter__(self) -> Iterator[Batch]:
        rows = (row for number in range(len(self._chunks)) for row in self._chunks.rows(number))
        while batch := list(itertools.islice(rows, self._size)):
            batch = lengths.trimmed(batch) if lengths.vary(self.examples.config) else batch
            blank = {name: np.full_like(x, padding(name, self._pad_id))
                     for name, x in batch[0].items()}  # fmt: skip
            whole = lengths.stacked(batch + [blank] * (self._size - len(batch)))
            yield {name: x[self._mine] for name, x in whole.items()}


def eval_batches(
    examples: Examples, documents: Sequence[Record], rows: Rows = slice
) -> EvalBatches:
    """Returns `rows` of batches that cover the documents once, in order.

    Every process gets the same number of batches; the last one is padded with rows of weight 0.
    """
    chunks = _chunks(examples, documents, "data.validation")
    return EvalBatches(examples, documents, chunks, rows)


def row_shapes(
    examples: type[Examples], config: ConfigDict
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape and dtype of a row for each batch field, from a sample row of bytes."""
    config = ConfigDict(config.to_dict())
    config.model.vocab_size, config.data.batch_size = 0, 1
    tokenizer = tokenizers.Bytes(examples.specials(config))
    config.data.labels = config.objective.groups = ("0",)  # those of the sample
    record = {name: fields.field(name).sample for name in examples.columns(config)}
    if examples.cut:
        record["text"] = "a word. " * (config.model.max_length // 4 + 4)
    row = _chunks(examples(tokenizer, config), [record], "data.train", 0).rows(0)[0]
    return {name: (np.shape(values), values.dtype) for name, values in row.items()}


def _chunks(
    examples: Examples, documents: Sequence[Record], key: str, seed=None, kind: type = Chunks
) -> Chunks:
    check_vocab(examples.config, examples.tokenizer)
    if not len(documents):
        raise ConfigError(f"{key}: has no documents; name a file, or hold out a fraction with "
                          "data.validation_fraction")
    if isinstance(documents, lazy.Tokens):
        documents.check(examples.tokenizer, key)
    chunks = kind(examples, documents, seed)
    if seed is not None and chunks.held is not None and chunks.held.ends[-1] < examples.stride:
        raise ConfigError(f"{key}: {chunks.held.ends[-1]} tokens do not fill one row of "
                          f"model.max_length = {examples.config.model.max_length}; use more text "
                          "or shorter rows")
    return chunks

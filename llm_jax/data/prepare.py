"""Writes a cleaned TFDS dataset in ArrayRecord format, with a data card, without TensorFlow."""

import itertools
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.card import Tally, card
from llm_jax.data.chunks import streams
from llm_jax.data.cleaning import Cleaning
from llm_jax.data.examples import Record
from llm_jax.data.fields import Columns
from llm_jax.data.pipeline import build_tokenizer
from llm_jax.data.sources import stored_tokenizer, streamed
from llm_jax.data.tokenizers import TRAINING_CHARACTERS, UNTRAINED, Tokenizer
from llm_jax.files import write_text

WORDS = ("tokens", "tags")  # fields that are lists of words
SPLITS = ("test", "validation", "train")  # in this order, to remove their duplicates from train
Sizes = dict[str, tuple[Tally, Tally]]  # for each split: documents read, documents stored


def prepare(
    name: str, config: ConfigDict, wanted: Sequence[str] = ("text",), folder: str = "",
    clean: Sequence[str] = (), tokens: bool = False, specials: Sequence[str] = (),
) -> tuple[Path, Sizes]:  # fmt: skip
    """Writes the documents of data.train, .validation and .test as `tfds:name`.

    Holds one document in memory at a time (.json: one file; parallel text: everything).

    Args:
      wanted: document fields, stored under the names of their columns.
      folder: TFDS data directory; empty: the default.
      clean: cleaning steps; data/cleaning.py documents their memory use.
      tokens: whether to store tokens of the config's tokenizer instead of text.
      specials: special tokens that the objective needs.

    Returns:
      The dataset's folder, whose README.md is the data card, and its sizes.

    Raises:
      ConfigError: the data cannot be read, no document is left, or the dataset already exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"--name: {name!r} must be lower-case letters, digits and underscores")
    if tokens and tuple(wanted) != ("text",):
        raise ConfigError(f"--tokens: the objective reads {', '.join(wanted)}; only objectives "
                          "that read text alone can use stored tokens")
    cleaning, tokenizer = Cleaning(clean), None
    if tokens:
        trained = config.tokenizer.name not in UNTRAINED
        docs = _train(_read(config, wanted, Cleaning(clean))[0]) if trained else iter(())
        tokenizer = _tokenizer(config, docs, specials)
    docs, sizes = _read(config, wanted, cleaning)
    from tensorflow_datasets import features as tf  # slow import

    if tokenizer:
        docs = {split: _tokens(tokenizer, part, sizes[split][1]) for split, part in docs.items()}
        how = {"dtype": tokenizer.dtype, "encoding": "bytes"}
        features = {"tokens": tf.Tensor(shape=(None,), **how)}
    else:
        columns = {name: config.data[f"{name}_column"] for name in wanted}
        docs = {split: _stored(part, columns) for split, part in docs.items()}
        features = {column: tf.Sequence(tf.Text()) if name in WORDS else tf.Text()
                    for name, column in columns.items()}  # fmt: skip
    about = {"tokenizer": config.tokenizer.to_dict()} if tokens else {}
    builder = _builder(name, docs, features, about, folder)
    if builder.is_prepared():
        raise ConfigError(f"--name: {name!r} already exists in {builder.data_dir}; delete that "
                          "folder, or choose another name")
    if tokenizer:
        tokenizer.save(stored_tokenizer(builder))
    builder.download_and_prepare()
    where = Path(builder.data_dir)
    write_text(where / "README.md", card(name, config, cleaning, sizes))
    return where, sizes


def _read(
    config: ConfigDict, wanted: Sequence[str], cleaning: Cleaning
) -> tuple[dict[str, Iterator[Record]], Sizes]:
    """Returns the cleaned documents of each split, and their sizes, valid after reading all."""
    sizes = {split: (Tally(), Tally()) for split in SPLITS if config.data[split]}
    read = {split: streamed(config.data[split], config.data, wanted) for split in sizes}
    return {split: after(cleaning(before(read[split]), split))
            for split, (before, after) in sizes.items()}, sizes  # fmt: skip


def _train(docs: dict[str, Iterator[Record]]) -> Iterator[Record]:
    for split, part in docs.items():
        if split == "train":
            yield from part
        deque(part, maxlen=0)  # train is compared with them


def _tokenizer(config: ConfigDict, docs: Iterator[Record], specials: Sequence[str]) -> Tokenizer:
    """Builds the config's tokenizer from evenly spaced documents."""
    kept, size, step = [], 0, 1
    for i, doc in enumerate(docs):
        if i % step == 0:
            kept.append(doc)
            size += len(doc["text"])
        if size > TRAINING_CHARACTERS and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            size = sum(len(doc["text"]) for doc in kept)
    return build_tokenizer(config, kept, specials)


def _stored(docs: Iterator[Record], columns: Columns) -> Iterator[dict[str, Any]]:
    """Yields fields by column name: texts and lists of words unchanged, other values as JSON."""
    for doc in docs:
        yield {column: json.dumps(value, ensure_ascii=False)
               if not isinstance(value := doc[name], str) and name not in WORDS else value
               for name, column in columns.items()}  # fmt: skip


def _builder(name: str, docs: dict[str, Iterator], features: dict, about: dict, folder: str):
    """Returns the TFDS builder for documents, or for tokens."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent  # TFDS may fail to find it

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(about) if about else None,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(part) for split, part in docs.items()}

        def _generate_examples(self, part):
            yield from enumerate(part)

    Builder.name = name
    return Builder(data_dir=folder or None, file_format="array_record")


def _tokens(tokenizer: Tokenizer, docs: Iterator[Record], tally: Tally) -> Iterator[Record]:
    while texts := [doc["text"] for doc in itertools.islice(docs, 1024)]:
        for ids in streams(tokenizer, texts, framed=False):
            tally.tokens += len(ids)
            yield {"tokens": ids}

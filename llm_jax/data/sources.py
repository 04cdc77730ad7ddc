"""Where documents come from: the built-in corpus, local text and JSONL, prepared TFDS sets."""

import glob
import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data import corpus

log = logging.getLogger(__name__)

# A set with less text than this is read whole; a larger one (TFDS only) is read as it is needed.
IN_MEMORY_BYTES = 2**31


class Lazy(Sequence):
    """Documents read one by one from a random-access source, in the order of `index` if given."""

    def __init__(self, source, column: str, index: np.ndarray | None = None):
        self.source, self.column, self.index = source, column, index

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i = i % len(self) if self.index is None else int(self.index[i])
        return _text_of(self.source[i], self.column)

    def take(self, positions: np.ndarray) -> "Lazy":
        """Returns the documents at `positions`."""
        index = positions if self.index is None else self.index[positions]
        return Lazy(self.source, self.column, index)


def documents(spec: str, data: ConfigDict) -> Sequence[str]:
    """Returns the documents that `spec` names; raises ConfigError when it cannot be read.

    `builtin:python`, `tfds:name/config:version@split`, a .txt or .jsonl file (or .gz of one) or a
    glob of them, or several of these separated by commas.
    """
    specs = [spec] if Path(spec).is_file() else [s.strip() for s in spec.split(",") if s.strip()]
    parts = [_read(s, data) for s in specs]
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, Lazy) for part in parts):
        raise ConfigError(f"data: {spec!r} mixes a TFDS set too large for memory with other text; "
                          "prepare the mixture with python -m llm_jax.data.prepare")
    return [document for part in parts for document in part]


def splits(config: ConfigDict) -> dict[str, Sequence[str]]:
    """Returns the documents of train, validation and test; no document is in two of them.

    A split without a spec of its own takes its share of the training documents, chosen by their
    content; a corpus of one document is cut in that order instead.
    """
    data = config.data
    named = {name: _spec_of(name, data) for name in ("validation", "test")}
    shares = [0.0 if spec else data.get(f"{name}_fraction", 0.0) for name, spec in named.items()]
    train = documents(data.train, data)
    train, *held = _hold_out(train, shares) if any(shares) else (train, [], [])
    validation, test = (
        documents(spec, data) if spec else part
        for spec, part in zip(named.values(), held, strict=True)
    )
    validation = _without(validation, [test], "data.validation", "data.test")
    train = _without(train, [validation, test], "data.train", "data.validation or data.test")
    return {"train": train, "validation": validation, "test": test}


def _spec_of(name: str, data: ConfigDict) -> str:
    """The split's own spec; a TFDS set that comes with this split names it by itself."""
    if spec := data.get(name, ""):
        return spec
    if data.train.startswith("tfds:") and "@" not in data.train and "," not in data.train:
        if name in _builder(data.train.removeprefix("tfds:"), data).info.splits:
            return f"{data.train}@{name}"
    return ""


def _hold_out(docs: Sequence[str], shares: list[float]) -> list[Sequence[str]]:
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise ConfigError(f"data.validation_fraction, data.test_fraction: {shares} must be shares "
                          "of the documents in [0, 1) that leave some to train on")
    if isinstance(docs, Lazy):
        order = np.random.default_rng(0).permutation(len(docs))
        return [docs.take(part) for part in _shares_of(order, shares)]
    digests = [_digest(doc) for doc in docs]
    unique = sorted(set(digests))
    if len(unique) == 1:
        text = docs[0]
        train_end, validation_end = (int(len(text) * (1 - s)) for s in (sum(shares), shares[1]))
        parts = text[:train_end], text[train_end:validation_end], text[validation_end:]
        return [[part] if part else [] for part in parts]
    # By content, not position: adding or reordering files moves few documents between splits.
    owner = {
        digest: split for split, part in enumerate(_shares_of(unique, shares)) for digest in part
    }
    parts = [[], [], []]
    for doc, digest in zip(docs, digests, strict=True):
        parts[owner[digest]].append(doc)
    return parts


def _shares_of(items, shares: list[float]) -> list:
    """(train, validation, test): each share rounded, but never to nothing."""
    counts = [max(1, round(share * len(items))) if share else 0 for share in shares]
    first, second = counts[0], sum(counts)
    if second >= len(items):
        raise ConfigError(f"data.validation_fraction: {len(items)} documents cannot be split into "
                          "train and held-out ones; give data.validation a file of its own")
    return [items[second:], items[:first], items[first:second]]


def _without(docs, others, key: str, other_keys: str):
    """Drops from `docs` what is also in `others`, where both are small enough to compare."""
    if isinstance(docs, Lazy) or not any(len(other) for other in others):
        return docs
    seen = {_digest(doc) for other in others if not isinstance(other, Lazy) for doc in other}
    kept = [doc for doc in docs if _digest(doc) not in seen]
    if dropped := len(docs) - len(kept):
        log.warning("%s: dropped %d of %d documents that are also in %s",
                    key, dropped, len(docs), other_keys)
        if not kept:
            raise ConfigError(f"{key}: every document is also in {other_keys}; name another file, "
                              "or leave that key empty to hold out a share of data.train")
    return kept


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _read(spec: str, data: ConfigDict) -> Sequence[str]:
    if spec.startswith("builtin:"):
        if spec != "builtin:python":
            raise ConfigError(f"data: {spec!r} is unknown; the one built-in corpus is "
                              "'builtin:python'")
        return corpus.python_documents()
    if spec.startswith("tfds:"):
        return _read_tfds(spec.removeprefix("tfds:"), data)
    docs = list(stream(spec, data))
    if not docs:
        raise ConfigError(f"data: {spec!r} is empty; it must hold text")
    return docs


def stream(spec: str, data: ConfigDict) -> Iterator[str]:
    """Yields the documents of a local file or glob, with one file in memory at a time."""
    paths = [spec] if Path(spec).exists() else sorted(glob.glob(spec, recursive=True))
    files = [Path(path) for path in paths if Path(path).is_file()]
    if not files:
        wrong = "is a folder" if Path(spec).is_dir() else f"matches no file in {Path.cwd()}"
        raise ConfigError(f"data: {spec!r} {wrong}; name a file, or a glob such as "
                          "'texts/**/*.txt'")
    return (doc for file in files for doc in _read_file(file, data.text_column))


def _read_file(path: Path, column: str) -> list[str]:
    raw = path.read_bytes()
    name = path.name
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"data: {path} is not a whole gzip file ({error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"data: {path} is not UTF-8: byte {error.object[error.start]:#04x} at "
                          f"offset {error.start}; convert it, e.g. with iconv -t UTF-8") from error
    if name.endswith((".jsonl", ".ndjson")):
        # Not splitlines(): a JSON string may hold U+2028, which that would split at.
        lines = enumerate(text.split("\n"), start=1)
        records = (_record(line, f"{path}:{i}", column) for i, line in lines if line.strip())
        return [record for record in records if record.strip()]
    if not text.strip():
        log.warning("data: %s is empty", path)
        return []
    return [text]


def _record(line: str, where: str, column: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"data: {where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"data: {where} must be a JSON object, not {type(record).__name__}")
    return _text_of(record, column, where)


def _text_of(record: dict, column: str, where: str = "the data") -> str:
    if column not in record:
        raise ConfigError(f"data.text_column: {column!r} is not in {where}, which has "
                          f"{sorted(record)}")
    text = record[column]
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    if not isinstance(text, str):
        raise ConfigError(f"data.text_column: {column!r} of {where} must be text, not "
                          f"{type(text).__name__}")
    return text


def _builder(name: str, data: ConfigDict):
    """The TFDS builder of a prepared set."""
    import tensorflow_datasets as tfds  # here: it takes seconds, and most runs do without

    folder = data.tfds_dir or None
    how = (
        f"data: tfds:{name} is not prepared in {data.tfds_dir or 'the default TFDS folder'}. Own "
        "text: python -m llm_jax.data.prepare --name=NAME --train=GLOB. A catalogue set, on any "
        f"machine (most need TensorFlow to prepare, none to read): tfds build {name} "
        "--file_format=array_record, then set data.tfds_dir"
    )
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ImportError) as error:
        raise ConfigError(how) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data: tfds:{name} cannot be opened: {reason}") from error
    if not builder.is_prepared():
        raise ConfigError(how)
    return builder


def _read_tfds(spec: str, data: ConfigDict) -> Sequence[str]:
    name, _, split = spec.partition("@")
    split = split or "train"
    builder = _builder(name, data)
    info = builder.info
    if data.text_column not in info.features:
        raise ConfigError(f"data.text_column: {data.text_column!r} is not a feature of tfds:{name}"
                          f", which has {sorted(info.features)}")
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ConfigError(f"data: tfds:{name} is prepared as {info.file_format.value}, which has "
                          "no random access; prepare it with --file_format=array_record") from error
    except (ValueError, KeyError) as error:
        raise ConfigError(f"data: tfds:{name} has no split {split!r}; it has "
                          f"{sorted(info.splits)}") from error
    docs = Lazy(source, data.text_column)
    if not len(docs):
        raise ConfigError(f"data: tfds:{name}@{split} is empty; it must hold text")
    if info.splits.total_num_examples and info.dataset_size:
        size = info.dataset_size * len(docs) / info.splits.total_num_examples
    else:
        size = np.inf
    return [text for text in docs if text.strip()] if size <= IN_MEMORY_BYTES else docs

"""Document sources: the built-in corpus, local files, prepared TFDS datasets, synthetic tasks.

A document is a record, a dict of named fields: see data/examples.py.
"""

import hashlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.console import counted
from llm_jax.data import corpus, fields, files, tasks, tokenizers
from llm_jax.data.fields import Columns, Record
from llm_jax.data.lazy import Lazy, Mixture, Tokens

log = logging.getLogger(__name__)


class _Texts(Sequence):
    """The text of each record; several fields or turns are joined by newlines."""

    def __init__(self, docs: Sequence[Record]):
        self.docs = docs

    def __len__(self) -> int:
        return len(self.docs)

    def __getitem__(self, i: int) -> str:
        return "\n".join(fields.texts(self.docs[i]))


def texts(docs: Sequence[Record]) -> Sequence[str]:
    """Returns all texts of the documents, without labels; for a task, its vocabulary."""
    if isinstance(docs, tasks.Examples):
        return [" ".join(docs.task.words())]
    if isinstance(docs, list):
        return [text for doc in docs for text in fields.texts(doc)]
    return _Texts(docs)


def documents(spec: str, data: ConfigDict, wanted: Sequence[str] = ("text",)) -> Sequence[Record]:
    """Returns the documents that `spec` names; raises ConfigError if it cannot be read.

    A spec is `builtin:python`, `tfds:name/config:version@split`, a file or glob of a type that
    data/files.py reads, or several of these separated by commas. Each field is read from the column
    that data.FIELD_column names; several fields also from parallel text files: "a.en,a.de.gz".
    """
    problem = (f"data: {spec!r} joins a TFDS set too large for memory with other text; set "
               "data.weights or data.mixture_temperature to mix them")  # fmt: skip
    return _joined([*sources(spec, data, wanted).values()], problem)


def streamed(spec: str, data: ConfigDict, wanted: Sequence[str]) -> Iterator[Record]:
    """Yields the result of `documents`, with one record of local files in memory at a time."""
    return itertools.chain(*sources(spec, data, wanted, _one_by_one).values())


def sources(
    spec: str, data: ConfigDict, wanted: Sequence[str] = ("text",), read: Callable | None = None
) -> dict[str, Sequence[Record]]:
    """Returns {source: documents} for each source in `spec`; see `documents`."""
    specs, columns = files.parts(spec), {field: data[f"{field}_column"] for field in wanted}
    n, lines = len(columns), []
    if n > 1:
        lines = [s for s in specs if not _holds_records(s, columns)]
        if len(lines) % n or not specs:
            keys = ", ".join(f"data.{field}_column" for field in columns)
            raise ConfigError(f"data: {spec!r} must name tables (.jsonl, .tsv, .csv …) or TFDS "
                              f"sets with the columns {keys}; or {n} text files at a time "
                              f"({', '.join(columns)}), as in \"train.en,train.de\"")
    _check_once([s for s in specs if s not in lines])
    parts, together = {}, []
    for one in specs:
        if one not in lines:
            parts[one] = (read or _read)(one, data, columns)
            continue
        together.append(one)
        if len(together) == n:
            parts[",".join(together)] = _parallel(columns, together)
            together = []
    return parts


def splits(
    config: ConfigDict, wanted: Sequence[str] = ("text",), parts: bool = False
) -> dict[str, Sequence[Record]]:
    """Returns the disjoint documents of train, validation and test.

    A split without a spec holds out a fraction of the training documents, chosen by content hash; a
    corpus of a single text is cut in order instead.

    Args:
      wanted: document fields to read.
      parts: whether records of parts (synthetic tasks) are supported.
    """
    data = config.data
    named = {name: _spec_of(name, data) for name in ("validation", "test")}
    shares = [0.0 if spec else data.get(f"{name}_fraction", 0.0) for name, spec in named.items()]
    fold = None
    if data.get("folds") and not data.validation:
        shares[0], fold = 1 / data.folds, (data.fold, data.folds)

    def read(split: str, spec: str) -> Sequence[Record]:
        if spec.startswith(tasks.PREFIX):
            return tasks.read(config, spec, split, parts)
        return documents(spec, data, wanted)

    asked = data.weights or data.mixture_limit or data.mixture_temperature != 1
    mixed = bool("," in data.train and asked)
    read_sets = sources(data.train, data, wanted) if mixed else {"": read("train", data.train)}
    sets = {one: _hold_out(docs, shares, fold) for one, docs in read_sets.items()}
    validation, test = (
        read(name, spec) if spec else _joined([part[i] for part in sets.values()], (
            f"data.{name}_fraction: cannot hold out from a data.train with several sources, one of "
            f"them too large for memory; set data.{name}, or set the fraction to 0"))
        for i, (name, spec) in enumerate(named.items(), start=1)
    )
    first, *_ = sets.values()
    for key, part in (("data.validation", validation), ("data.test", test)):
        _same_words(key, part, first[0])
    validation = _without(validation, [test], "data.validation", "data.test")
    keys = "data.train", "data.validation or data.test"
    rest = {one: _without(docs, [validation, test], *keys) for one, (docs, *_) in sets.items()}
    train = Mixture(rest, data, config.seed) if mixed else rest[""]
    return {"train": train, "validation": validation, "test": test}


def split(
    config: ConfigDict, name: str, wanted: Sequence[str], parts: bool = False
) -> Sequence[Record]:
    """Returns one of `splits`, without reading the others if it has its own file."""
    data = config.data
    spec = "" if name == "train" else data[name]
    among_others = name == "validation" and (_spec_of("test", data) or data.test_fraction)
    if not spec or spec.startswith(tasks.PREFIX) or among_others:
        return splits(config, wanted, parts)[name]
    return documents(spec, data, wanted)


def _spec_of(name: str, data: ConfigDict) -> str:
    """Returns the split's spec, by default that of a task or a TFDS set with such a split."""
    spec = data.get(name, "")
    if spec or (name == "validation" and data.get("folds")):
        return spec
    if data.train.startswith(tasks.PREFIX):
        return re.sub(r"(?<=[?&])examples=[^&]*", "", data.train)  # applies to train only
    if data.train.startswith("tfds:") and "@" not in data.train and "," not in data.train:
        if name in _builder(data.train.removeprefix("tfds:"), data).info.splits:
            return f"{data.train}@{name}"
    return ""


def _joined(parts: list[Sequence[Record]], problem: str) -> Sequence[Record]:
    """Concatenates the documents of several sources, which must be in memory."""
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, Lazy) for part in parts):
        raise ConfigError(problem)
    return [document for part in parts for document in part]


def _hold_out(
    docs: Sequence[Record], shares: list[float], fold: tuple[int, int] | None = None
) -> list[Sequence[Record]]:
    """Splits a source into train, validation and test by fractions.

    fold: (index, number of folds); the validation part of the documents that are not test.
    """
    if not any(shares):
        return [docs, [], []]
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise ConfigError(f"data.validation_fraction, data.test_fraction: {shares} must be in "
                          "[0, 1), with a sum below 1")
    if fold and (isinstance(docs, Lazy) or len(set(map(_digest, docs))) < fold[1]):
        raise ConfigError(f"data.folds={fold[1]}: needs as many different documents, in memory")
    if isinstance(docs, Lazy):
        return [docs.take(part) for part in _shares_of(range(len(docs)), shares)]
    digests = [_digest(doc) for doc in docs]
    unique = sorted(set(digests))
    if len(unique) == 1 and docs[0].keys() == {"text"}:
        text = docs[0]["text"]
        a, b = (int(len(text) * (1 - share)) for share in (sum(shares), shares[1]))
        return [[{"text": part}] if part else [] for part in (text[:a], text[a:b], text[b:])]
    # Split by content, not position: adding or reordering files moves few documents.
    train, validation, test = _shares_of(unique, shares)
    if fold:
        rest, (nth, count) = validation + train, fold
        start, end = (i * len(rest) // count for i in (nth, nth + 1))
        train, validation = rest[:start] + rest[end:], rest[start:end]
    parts = map(set, (train, validation, test))
    return [[doc for doc, digest in zip(docs, digests, strict=True) if digest in part]
            for part in parts]  # fmt: skip


def _shares_of(items, shares: list[float]) -> list:
    """Returns (train, validation, test): fractions are rounded, to at least one document."""
    n = len(items)
    counts = [max(1, round(share * n)) if share else 0 for share in shares]
    first, second = counts[0], sum(counts)
    if second >= n:
        raise ConfigError(f"data.validation_fraction: {counted(n, 'documents')} cannot be split "
                          "into training and held-out documents; set data.validation to a file "
                          "(a text file is one document, and so is a line of JSONL)")
    return [items[second:], items[:first], items[first:second]]


def _without(docs, others, key: str, other_keys: str):
    """Drops documents that are also in `others`, if both are small enough to compare."""
    if not isinstance(docs, list) or not any(len(other) for other in others):
        return docs
    seen = {_digest(doc) for other in others if isinstance(other, list) for doc in other}
    kept = [doc for doc in docs if _digest(doc) not in seen]
    if dropped := len(docs) - len(kept):
        log.warning("%s: dropped %d of %d documents that are also in %s",
                    key, dropped, len(docs), other_keys)
        if not kept:
            raise ConfigError(f"{key}: every document is also in {other_keys}; name another file, "
                              "or leave that key empty to hold out a fraction of data.train")
    return kept


def _same_words(key: str, docs: Sequence[Record], train: Sequence[Record]) -> None:
    """Raises ConfigError if an evaluation task has words that the training task does not."""
    if isinstance(docs, tasks.Examples):
        known = set(train.task.words() if isinstance(train, tasks.Examples) else ())
        if unknown := [word for word in docs.task.words() if word not in known]:
            raise ConfigError(f"{key}: its task has words that data.train does not, such as "
                              f"{unknown[0]!r}; use the same task and vocabulary for both")


def _digest(doc: Record) -> bytes:
    # Hash text without labels: a text that occurs with two labels, and all questions about a text,
    # are in the same split.
    text = "\0".join([doc["context"]] if "context" in doc else fields.texts(doc))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _read(spec: str, data: ConfigDict, columns: Columns) -> Sequence[Record]:
    if spec.startswith("builtin:"):
        if spec != "builtin:python":
            raise ConfigError(f"data: {spec!r} is unknown; use 'builtin:python'")
        return [{"text": text} for text in corpus.python_documents()]
    if spec.startswith("tfds:"):
        return _read_tfds(spec.removeprefix("tfds:"), data, columns)
    docs, size = [], 0
    for doc in stream(spec, columns):
        size += sum(map(len, fields.texts(doc)))
        if size > files.IN_MEMORY_BYTES:
            raise files.too_large(spec)
        docs.append(doc)
    if not docs:
        table = re.search(r"\.[ct]sv\b", spec) and any(map(os.path.getsize, files.named(spec)))
        what = f"has a header, and no row with {' and '.join(columns)}" if table else "is empty"
        raise ConfigError(f"data: {spec!r} {what}; it must hold text")
    return docs


def _one_by_one(spec: str, data: ConfigDict, columns: Columns) -> Iterable[Record]:
    if not spec.startswith(("builtin:", "tfds:")):
        return stream(spec, columns)
    if isinstance(docs := _read(spec, data, columns), Tokens):
        raise ConfigError(f"data: {spec!r} is stored as tokens; prepare its text")
    return docs


def _check_once(specs: list[str]) -> None:
    """Raises ConfigError if two specs name the same file."""
    local = [s for s in specs if not s.startswith(("builtin:", "tfds:"))] if len(specs) > 1 else []
    seen = set()
    for file in itertools.chain(*map(files.named, local)):
        if (real := os.path.realpath(file)) in seen:
            raise ConfigError(f"data: {', '.join(specs)} names {file} twice; name each file once")
        seen.add(real)


def _holds_records(spec: str, columns: Columns) -> bool:
    if spec.startswith(("builtin:", "tfds:")):
        return spec.startswith("tfds:")
    return files.holds_records(files.named(spec)[0], columns.values())


def fingerprint(config: ConfigDict) -> dict[str, str]:
    """Returns {file or dataset: digest} for the sources of data.train, .validation and .test.

    The digest covers size and content of a file (data/files.py), version and counts of a TFDS set,
    and the Python version for the built-in corpus.
    """
    digests, data = {}, config.data
    for part in itertools.chain(*map(files.parts, [data.train, data.validation, data.test])):
        if part.startswith("tfds:"):
            info = _builder(part.removeprefix("tfds:").partition("@")[0], data).info
            counts = {name: split.num_examples for name, split in info.splits.items()}
            digests[part] = f"{info.version} {sorted(counts.items())}"
        elif part.startswith("builtin:"):
            digests[part] = sys.version
        elif not part.startswith(tasks.PREFIX):  # tasks are functions of their spec
            digests |= {file: files.fingerprint(file) for file in files.named(part)}
    return digests


def stream(spec: str, columns: Columns) -> Iterator[Record]:
    """Yields the documents of local files, with one record in memory at a time."""
    for file in files.named(spec):
        blank = []
        for where, record in files.records(file, columns.values(), "tokens" in columns):
            if fields.full(doc := fields.document(record, columns, where)):
                yield doc
            else:
                blank.append(where)
        if blank == [file]:
            log.warning("data: %s is empty", file)
        elif blank:
            log.warning("data: %s: skipped %s with an empty %s, the first at %s",
                        file, counted(len(blank), "rows"), " or ".join(columns), blank[0])


def _parallel(columns: Columns, specs: list[str]) -> list[Record]:
    """Returns records of parallel text: line i of each file, if none is empty."""
    sides = [[line for file in files.named(spec) for line in files.lines(file)] for spec in specs]
    for spec, side in zip(specs, sides, strict=True):
        if len(side) != len(sides[0]):
            raise ConfigError(f"data: {specs[0]} has {len(sides[0])} lines and {spec} has "
                              f"{len(side)}; line i of one must correspond to line i of the other")
    rows = (dict(zip(columns, line, strict=True)) for line in zip(*sides, strict=True))
    own = {name: name for name in columns}
    docs = [fields.document(row, own, f"line {i} of {', '.join(specs)}")
            for i, row in enumerate(rows, start=1)]  # fmt: skip
    docs = [doc for doc in docs if fields.full(doc)]
    if not docs:
        raise ConfigError(f"data: {', '.join(specs)} are empty; they must hold text")
    return docs


def _builder(name: str, data: ConfigDict):
    """Returns the TFDS builder of a prepared dataset."""
    import tensorflow_datasets as tfds  # slow import, not needed in most runs

    advice = (
        f"data: tfds:{name} is not prepared in {data.tfds_dir or 'the default TFDS folder'}; set "
        "data.tfds_dir if it is elsewhere, or use your own text: data.train=FILE (for seq2seq "
        "data.train=SOURCES.txt,TARGETS.txt, parallel by line). To prepare your text: launch.py "
        "prepare --name=NAME --config.data.train=GLOB. To prepare a dataset of the TFDS catalogue "
        "(which usually needs TensorFlow; reading does not): "
        f"tfds build {name} --file_format=array_record"
    )
    try:
        builder = tfds.builder(name, data_dir=data.tfds_dir or None)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ImportError) as error:
        raise ConfigError(advice) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data: tfds:{name} cannot be opened: {reason}") from error
    if not builder.is_prepared():
        raise ConfigError(advice)
    return builder


def _read_tfds(spec: str, data: ConfigDict, columns: Columns) -> Sequence[Record]:
    name, _, split = spec.partition("@")
    split = split or "train"
    builder = _builder(name, data)
    info = builder.info
    raw = {}
    if tokenised := info.metadata is not None and "tokenizer" in info.metadata:
        if len(columns) > 1:
            raise ConfigError(f"data: tfds:{name} is stored as tokens; pairs are read as text")
        from tensorflow_datasets import decode

        columns, raw = {}, {"deserialize_method": decode.DeserializeMethod.RAW_BYTES}
    for field, column in columns.items():
        if not {column, column.partition(".")[0]} & set(info.features):
            raise ConfigError(f"data.{field}_column: {column!r} is not a feature of tfds:{name}, "
                              f"which has {sorted(info.features)}")
    try:
        source = builder.as_data_source(split=split, **raw)
    except NotImplementedError as error:
        raise ConfigError(f"data: tfds:{name} is prepared as {info.file_format.value}, which has "
                          "no random access; prepare it with --file_format=array_record") from error
    except (ValueError, KeyError) as error:
        raise ConfigError(f"data: tfds:{name} has no split {split!r}; it has "
                          f"{sorted(info.splits)}") from error
    if not len(source):
        raise ConfigError(f"data: tfds:{name}@{split} is empty; it must hold text")
    count = info.splits.total_num_examples
    mean = info.dataset_size / count if count and info.dataset_size else np.inf  # in bytes
    if tokenised:
        tokenizer = tokenizers.load(stored_tokenizer(builder))
        width = np.dtype(tokenizer.dtype).itemsize
        return Tokens(source, tokenizer, info.metadata["tokenizer"], mean / width)
    names = {column: _label_names(info.features[column]) for column in columns.values()
             if column in info.features}  # fmt: skip
    docs = Lazy(source, columns, mean=mean / 4 if mean < np.inf else 1024, names=names)
    small = mean * len(docs) <= files.IN_MEMORY_BYTES
    return [doc for doc in docs if fields.full(doc)] if small else docs


def _label_names(feature) -> list[str] | None:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "names", None)


def stored_tokenizer(builder) -> Path:
    """Returns the folder of the tokenizer of a TFDS set of tokens."""
    return Path(builder.data_dir).parent / "tokenizer"

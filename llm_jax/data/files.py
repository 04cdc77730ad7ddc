"""Readers of local files: glob expansion, file type detection, and parsing into records.

A record is a dict of named fields. The file type is determined by the suffix, ignoring case, and
the first bytes. KINDS are supported, also compressed with gzip or Zstandard; OTHERS raise an error.
"""

import codecs
import contextlib
import csv
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.files import check_local, parse_json

Record = dict[str, Any]
Located = tuple[str, Record]  # ("FILE:LINE" for messages, record)

IN_MEMORY_BYTES = 2**31  # maximum size of text that is read into memory
BLOCK = 2**18  # bytes read at a time
# Files up to WHOLE bytes are hashed completely, larger ones by SAMPLES blocks of SAMPLE bytes.
WHOLE, SAMPLES, SAMPLE = 2**20, 16, 2**16
HEAD = 512  # bytes used to detect the content of a compressed file
AHEAD = 1000  # lines searched for a blank line, which marks a .tsv with one token per line


# Suffixes of files that are never read as text.
OTHERS = set("""
    tar tgz tbz tbz2 txz bz2 bz xz lzma lz4 lz z br sz 7z rar zip docx doc odt rtf pdf xlsx xls ods
    pptx ppt odp epub mobi azw3 npy npz pt pth pkl pickle joblib arrow feather orc avro safetensors
    gguf msgpack tfrecord tfrecords array_record arrayrecord riegeli h5 hdf5 db sqlite sqlite3 png
    jpg jpeg gif webp bmp tif tiff ico heic mp3 wav flac ogg m4a mp4 mkv avi mov webm exe dll pyc
""".split())
ADVICE = ("unpack it, or save its text as .txt or its table as .csv; use tfds:NAME for a TFDS "
          "dataset, and init_from for weights")
_PARQUET, _GZIP, _ZSTD = b"PAR1\x15", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PACKED = {"gz": "gzip", "gzip": "gzip", "zst": "Zstandard", "zstd": "Zstandard"}
_SHARD = re.compile(r"(?<=.)-\d+-of-\d+$")
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a]")  # characters that do not occur in text
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # possibly a lone surrogate
_NOT_A_WORD = re.compile(rb"#|\d+[-.]\d+\t")  # CoNLL-U: a comment, a range, an empty node
_LANGUAGE = re.compile(rb"[a-z][a-z-]+:(?=\S)")
DOCUMENT = b"-DOCSTART-"  # document separator of CoNLL-2003
_CONLLU = "id form lemma upos xpos feats head deprel deps misc".split()


# Finding files.


def named(spec: str) -> list[str]:
    """Returns the files that match a path or glob, sorted, without duplicates.

    `**` matches any number of folders. Links are followed; files and folders reached again through
    links are skipped. Hidden names must be given explicitly, as in a shell.

    Raises:
      ConfigError: no file matches.
    """
    check_local(f"data: {spec!r}", spec)
    spec = os.path.expanduser(spec)
    if os.path.isfile(spec):
        return [spec]
    paths = [] if os.path.isdir(spec) else _found(spec)
    linked = lambda path: os.path.realpath(path) != os.path.abspath(path)
    real = {}  # a file is named by its own path, not by a link
    for path in sorted(paths, key=lambda path: (linked(path), path)):
        real.setdefault(os.path.realpath(path), path)
    if not real:
        problem = "is a folder" if os.path.isdir(spec) else f"matches no file in {os.getcwd()}"
        raise ConfigError(f"data: {spec!r} {problem}; name a file, or a glob such as "
                          "'texts/**/*.txt'")
    return sorted(real.values())


def parts(spec: str) -> list[str]:
    """Returns the sources in data.train=A,B; a file's name may have a comma."""
    return [spec] if os.path.isfile(spec) else [s.strip() for s in spec.split(",") if s.strip()]


def check_named(data: ConfigDict) -> None:
    """Raises ConfigError if data.train, .validation or .test names a missing file; skips globs."""
    for part in itertools.chain(*map(parts, (data.train, data.validation, data.test))):
        if not re.match(r"(builtin|task|tfds):|.*[*?[]", part):
            named(part)


def _found(spec: str) -> list[str]:
    """Expands a glob. Python's glob follows loops of links, possibly without end."""
    stars = re.fullmatch(r"((?:.*?/)??)\*\*(?:/(.*))?", spec)
    if not stars:
        return [path for path in glob.glob(spec) if os.path.isfile(path)]
    above, below, folders, seen = stars[1], stars[2] or "*", [], set()
    for top in sorted(glob.glob(above)) if above else [""]:
        for folder, names, _ in os.walk(top or ".", followlinks=True, onerror=_refuse):
            if (real := os.path.realpath(folder)) in seen:
                names.clear()
                continue
            seen.add(real)
            link = lambda name, folder=folder: os.path.islink(os.path.join(folder, name))
            names[:] = sorted((n for n in names if n[0] != "."), key=lambda n: (link(n), n))
            folders.append(folder if top else folder.removeprefix(".").removeprefix("/"))
    return [path for folder in folders for path in _found(os.path.join(glob.escape(folder), below))]


def _refuse(error: OSError) -> None:
    raise ConfigError(f"data: the folder {error.filename} cannot be read: {error.strerror}")


def fingerprint(path: str) -> str:
    """Returns a digest of a file's size and content.

    For files larger than WHOLE bytes, it covers SAMPLES evenly spaced blocks only: an edit between
    them that keeps the size is not detected.
    """
    with _opened(path) as file:
        raw = file.read(WHOLE + 1)
        size = len(raw)
        if size > WHOLE:
            size, raw = os.fstat(file.fileno()).st_size, b""
            for i in range(SAMPLES):
                file.seek((size - SAMPLE) * i // (SAMPLES - 1))
                raw += file.read(SAMPLE)
    return f"{size} bytes, {hashlib.blake2b(raw, digest_size=16).hexdigest()}"


# File types.


def holds_records(path: str, columns: Iterable[str] = ()) -> bool:
    """Whether a file holds records with the requested columns, rather than plain text."""
    if _suffix(path)[0] in KINDS or _numbered(columns):
        return True
    with _opened(path) as file:
        return file.read(len(_PARQUET)) == _PARQUET


def _numbered(columns: Iterable[str]) -> bool:
    columns = [*columns]
    return bool(columns) and all(column.isdecimal() for column in columns)


def records(path: str, columns: Iterable[str] = (), words: bool = False) -> Iterator[Located]:
    """Yields (location, record) for each record of a file; plain text is {"text": …}.

    Args:
      columns: requested columns. Numbers ("0", "1", …) mean that a .csv or .tsv has no header. If
        all are numbers, files with other suffixes are also read as tables, or with one token per
        line (CoNLL's .txt). "predicate" requests one record per predicate of a .conllu, see
        `_conllu`.
      words: lists of words are requested, so that a .tsv may have one token per line.

    Raises:
      ConfigError: the file type is not supported, the file is damaged or not UTF-8, or a text is
        longer than IN_MEMORY_BYTES.
    """
    for where, record in rows(path, columns, words):
        if isinstance(record, ConfigError):
            raise record
        yield where, record


def rows(
    path: str, columns: Iterable[str] = (), words: bool = False, lines: bool = False
) -> Iterator[tuple[str, Record | ConfigError]]:
    """As `records`, but yields the error of an invalid row instead of raising it.

    lines: each line of plain text is a row or, if it starts with a brace, a JSON object.
    """
    (kind, packing), columns = _suffix(path), {*columns}
    if kind in OTHERS:
        raise ConfigError(f"data: {path} is not a text or table file by its name; {ADVICE}")
    with _opened(path) as file:
        first = file.read(BLOCK)
        if not packing and (kind == "parquet" or first.startswith(_PARQUET)):
            yield from _parquet(path)
        else:
            blocks = _text_of(path, packing, first, file)
            plain = _json_lines if lines else _text
            # By lines, a table with another suffix is detected by its tabs.
            table = _numbered(columns) and (not lines or b"\t" in first.partition(b"\n")[0])
            read = KINDS.get(kind) or (_tsv if table else plain)
            read = _words if words and read is _tsv else read
            yield from read(path, blocks, columns)


def lines(path: str) -> list[str]:
    """Returns the lines of a plain text file, stripped."""
    ((_, record),) = records(path)
    split = [line.strip() for line in record["text"].split("\n")]
    return split if split[-1] else split[:-1]


def _suffix(path: str) -> tuple[str, str]:
    """Returns ("jsonl", "gz") for FILE.JSONL.gz; shards are named SUFFIX-00000-of-00010."""
    name = _SHARD.sub("", path[path.rfind("/") + 1 :].lower())
    *_, kind, packing = ["", "", *name.split(".")[1:]]
    if packing not in _PACKED:
        return packing, ""
    return _SHARD.sub("", f".{kind}")[1:], packing


@contextlib.contextmanager
def _opened(path: str) -> Iterator[io.FileIO]:
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise ConfigError(f"data: {path} cannot be read: {error.strerror or error}") from error


def _text_of(path: str, packing: str, first: bytes, file: io.FileIO) -> Iterator[bytes]:
    """Yields the blocks of a text file, decompressed, as UTF-8 without a byte order mark."""
    blocks = iter(functools.partial(file.read, BLOCK), b"")
    if first.startswith((_GZIP, _ZSTD)):
        file.seek(0)
        blocks = (_gunzip if first.startswith(_GZIP) else _zstd)(path, file)
        first = b""
        for block in blocks:
            first += block
            if len(first) >= HEAD:
                break
        if first.startswith((_GZIP, _ZSTD, _PARQUET)):
            raise ConfigError(f"data: {path} contains another compressed file; unpack it once")
    elif packing:
        raise ConfigError(f"data: {path} is not a valid {_PACKED[packing]} file: it does not start "
                          "like one")
    encoding = next((name for mark, name in _MARKS.items() if first.startswith(mark)), "")
    if encoding in ("utf-16", "utf-32"):
        raw = b"".join(_limited(path, itertools.chain([first], blocks)))
        try:
            first, blocks = raw.decode(encoding).encode(), ()
        except UnicodeError as error:
            raise ConfigError(f"data: {path} is not valid {encoding.upper()}: {error}") from error
    yield first[len(codecs.BOM_UTF8) :] if encoding == "utf-8" else first
    yield from blocks


def _gunzip(path: str, file: io.FileIO) -> Iterator[bytes]:
    try:
        yield from iter(functools.partial(gzip.GzipFile(fileobj=file).read, BLOCK), b"")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"data: {path} is not a valid gzip file ({error})") from error


def _zstd(path: str, file) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"data: {path} is a Zstandard file; pip install zstandard to read it, or "
                          "unpack it (unzstd)") from error
    make = zstandard.ZstdDecompressor().decompressobj
    frame, whole = make(), True
    try:
        while block := file.read(2**12):  # a block can expand by a factor of 30,000
            while block:
                yield frame.decompress(block)
                block, whole = frame.unused_data, frame.eof
                frame = make() if whole else frame
    except zstandard.ZstdError as error:
        raise ConfigError(f"data: {path} is not a valid Zstandard file ({error})") from error
    if not whole:
        raise ConfigError(f"data: {path} is not a valid Zstandard file (it ends early)")


def _limited(path: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        if size > IN_MEMORY_BYTES:
            raise too_large(path)
        yield block


def too_large(name: str) -> ConfigError:
    """Returns the error for text that is too large to read into memory."""
    return ConfigError(f"data: {name} unpacks to more than {IN_MEMORY_BYTES:,} bytes of text, too "
                       "much to hold in memory; save it as .jsonl or in smaller files, and convert "
                       "it: launch.py prepare --name=NAME --config.data.train=GLOB, then "
                       "data.train=tfds:NAME")


# Parsers: KIND(path, blocks, columns) -> (location, record).


def _text(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    yield path, {"text": _decoded(b"".join(_limited(path, blocks)), path)}


def _decoded(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        raise ConfigError(f"data: {where} holds NUL bytes (the first at offset {raw.index(0)}), so "
                          "it is not text; if it is UTF-16 without a mark, save it as UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if _CONTROL.search(raw):
            raise ConfigError(f"data: {where} is not text of a supported type: .txt, "
                              f"{', '.join(f'.{kind}' for kind in KINDS)}; {ADVICE}") from error
        raise ConfigError(f"data: {where} is not UTF-8: byte {error.object[error.start]:#04x} at "
                          f"offset {error.start}; convert it, e.g. with iconv -t UTF-8") from error


def _lines(path: str, blocks: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields the location of each line and the line, without its end."""
    lines = enumerate(_split(path, blocks), start=1)
    return ((f"{path}:{i}", line.removesuffix(b"\r")) for i, line in lines)


def _split(path: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    # Not splitlines(), which also splits at U+2028, allowed in JSON strings.
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        if b"\n" not in block:
            size += len(block)
            if size > IN_MEMORY_BYTES:
                raise too_large(f"a line of {path}")
            parts.append(block)
            continue
        *lines, last = b"".join([*parts, block]).split(b"\n")
        yield from lines
        parts, size = [last], len(last)
    if line := b"".join(parts):
        yield line


def _json_lines(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    plain = _suffix(path)[0] not in KINDS  # each line is a row
    for where, line in _lines(path, blocks):
        if line.strip() or plain:
            yield where, _row(line, where, plain)


def _row(line: bytes, where: str, plain: bool) -> Record | ConfigError:
    try:
        if not line.strip():
            raise ConfigError(f"data: {where} is blank")
        if plain and not line.lstrip().startswith(b"{"):
            return {"text": _decoded(line, where)}
        return parse_json(_json_text(line, where), f"data: {where}")
    except ConfigError as error:
        return error


def _json_text(raw: bytes, where: str) -> str:
    text = _decoded(raw, where)
    if _SURROGATE.search(raw):
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"data: {where} holds a lone surrogate, "
                              f"{error.object[error.start]!a}, which is not a character") from error
        except (ValueError, RecursionError):
            pass  # the caller reports the location
    return text


def _json(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    """A list of objects; an object with one such list, as "data"; SQuAD's; or JSON lines."""
    raw = b"".join(_limited(path, blocks))
    first, _, after = raw.strip().partition(b"\n")
    if after.strip() and _is_object(first):
        yield from _json_lines(path, iter([raw]), columns)
        return
    if not raw.strip():
        return
    content = parse_json(_json_text(raw, path), f"data: {path}", (dict, list))
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items()
                 if value and isinstance(value, list) and isinstance(value[0], dict)}  # fmt: skip
        if len(lists) > 1 and "data" not in lists:
            raise ConfigError(f"data: {path} holds several lists of records, {sorted(lists)}; save "
                              "each in a separate file")
        content = lists.get("data") or next(iter(lists.values()), [content])
    for i, value in enumerate(content):
        if not isinstance(value, dict):
            raise ConfigError(f"data: {path}[{i}]: holds a {type(value).__name__}, not a JSON "
                              "object")
        if isinstance(value.get("paragraphs"), list):
            yield from _questions(f"{path}[{i}]", value)
        else:
            yield f"{path}[{i}]", value


def _questions(where: str, article: Record) -> Iterator[Located]:
    """Yields a record per question of SQuAD's JSON (1.1 and 2.0), with its context."""
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = {"answers": question.get("answers") or []}
                yield where, {"context": paragraph["context"]} | question | answers
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"data: {where}: its paragraphs do not have SQuAD's context and qas "
                          f"({error!r})") from error


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _csv(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    """Comma-separated values, quoted as in Python's csv; with a header, or columns by number."""
    csv.field_size_limit(min(IN_MEMORY_BYTES, 2**31 - 1))
    text = (_decoded(line, f"{path}:{i}") + "\n" for i, line in enumerate(_split(path, blocks), 1))
    reader = csv.reader(text, strict=True)
    try:
        yield from _table(((f"{path}:{reader.line_num}", row) for row in reader if row), columns)
    except csv.Error as error:
        raise ConfigError(f"data: {path}:{reader.line_num} is not CSV: {error}") from error


def _tsv(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    """Tab-separated values, with literal quotes (as in GLUE)."""
    return _rows(_lines(path, blocks), columns)


def _rows(lines: Iterable[tuple[str, bytes]], columns: set[str]) -> Iterator[Located]:
    return _table(((w, _decoded(line, w).split("\t")) for w, line in lines if line), columns)


def _words(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    """A .tsv with one token per line, as CoNLL, if there are blank lines; otherwise a table."""
    ahead, lines = _ahead(_lines(path, blocks))
    full = [full for full, _ in itertools.groupby(bool(line.strip()) for _, line in ahead)]
    if full.count(True) < 2:
        return _rows(lines, columns)
    header = _decoded(ahead[0][1], ahead[0][0]).split("\t")
    if not columns <= set(header):
        return _sentences(lines)
    sentences = _sentences(itertools.islice(lines, 1, None))
    return ((w, dict(zip(header, r.values(), strict=False))) for w, r in sentences)


def _ahead(lines: Iterable[tuple[str, bytes]]) -> tuple[list, Iterator[tuple[str, bytes]]]:
    lines = iter(lines)
    ahead = list(itertools.islice(lines, AHEAD))
    return ahead, itertools.chain(ahead, lines)


def _table(rows: Iterator[tuple[str, list[str]]], columns: set[str]) -> Iterator[Located]:
    where, header = next(rows, ("", []))
    if any(column.isdecimal() and column not in header for column in columns):
        rows = itertools.chain([(where, header)], rows)
        header = [str(i) for i in range(len(header))]
    _check_names(where, header)
    for where, row in rows:
        if len(row) != len(header):
            yield where, ConfigError(f"data: {where} has {len(row)} columns, where the first line "
                                     f"has {len(header)}")
            continue
        yield where, dict(zip(header, row, strict=True))


def _check_names(where: str, header: list[str]) -> None:
    if twice := next((name for name in header if header.count(name) > 1), ""):
        raise ConfigError(f"data: {where} names the column {twice!r} twice")


def _conllu(path: str, blocks: Iterator[bytes], columns: set[str]) -> Iterator[Located]:
    """CoNLL-U, with columns by number or name; skips ranges and empty nodes ("3-4", "3.1").

    With the column "predicate", yields a record per predicate of Universal PropBank (column 10 is
    its sense, a further column its arguments): predicate, its index; sense; roles, the argument
    label of each token, as B-ARG0, or O. Only the head of an argument is labelled.
    """
    words = ((w, line) for w, line in _lines(path, blocks) if not _NOT_A_WORD.match(line))
    for where, record in _sentences(words, tabs=True):
        record = dict(zip(_CONLLU, record.values(), strict=False)) | record
        if "predicate" not in columns:
            yield where, record
            continue
        places = [i for i, sense in enumerate(record.get("10", ())) if sense not in ("_", "")]
        for column, place in enumerate(places, start=11):
            if str(column) not in record:
                raise ConfigError(f"data: {where} has {len(places)} predicates in column 10, but a "
                                  "different number of columns after it")
            roles = ["O" if x in ("_", "", "V") else f"B-{x}" for x in record[str(column)]]
            yield where, record | {
                "predicate": place, "sense": record["10"][place], "roles": roles
            }  # fmt: skip


def _sentences(lines: Iterable[tuple[str, bytes]], tabs: bool = False) -> Iterator[Located]:
    """Yields sentences, one token per line, separated by blank lines: a list for each column.

    Columns are separated by tabs, if every line has some, or by spaces; other whitespace may be a
    token. Removes a language prefix of all tokens ("en:", as in WikiANN).
    """
    ahead, lines = _ahead(lines)
    begin = [_LANGUAGE.match(line) for _, line in ahead if line.strip()]
    tabs = tabs or all(b"\t" in line.strip() for _, line in ahead
                       if line.strip() and not line.startswith(DOCUMENT))  # fmt: skip
    language = {m and m[0] for m in begin} if len(begin) > 1 else set()
    language = b"" if len(language) != 1 else language.pop() or b""
    rows, start = [], ""
    for where, line in itertools.chain(lines, [("", b"")]):
        text = _decoded(line.removeprefix(language), where)
        if text.strip(" \t") and not text.startswith(DOCUMENT.decode()):
            rows.append(text.split("\t") if tabs else re.split("[ \t]+", text.strip(" \t")))
            start = start or where
            if len(rows[-1]) != len(rows[0]):
                raise ConfigError(f"data: {where} has {len(rows[-1])} columns, but its sentence "
                                  f"starts with {len(rows[0])}")
        elif rows:
            yield start, {str(i): list(column) for i, column in enumerate(zip(*rows, strict=True))}
            rows, start = [], ""


def _parquet(path: str) -> Iterator[Located]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"data: {path} is a Parquet file; pip install pyarrow to read it, or "
                          "write it as .jsonl") from error
    try:
        count = 0
        with parquet.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(1024):
                for record in batch.to_pylist():
                    where = f"{path}[{count}]"
                    raw = {name: value for name, value in record.items() if type(value) is bytes}
                    yield where, record | {k: _decoded(v, where) for k, v in raw.items()}
                    count += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data: {path} is not a valid Parquet file ({error})") from error


KINDS = {
    "jsonl": _json_lines, "ndjson": _json_lines, "json": _json, "csv": _csv, "tsv": _tsv,
    "conll": lambda path, blocks, columns: _sentences(_lines(path, blocks)), "conllu": _conllu,
    "parquet": None,
}  # fmt: skip

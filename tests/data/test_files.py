"""Tests of file formats, globs and damaged files: read correctly or rejected."""

import csv
import functools
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys

import pytest

from llm_jax.config import ConfigError
from llm_jax.data import files, sources

RECORDS = [
    {"text": 'He said "so, what?"', "label": "1"},
    {"text": "é\u2028 line", "label": "0"},
    {"text": "它", "label": "two"},
]
COLUMNS = ["text", "label"]


def _csv(records, **how):
    out = io.StringIO()
    writer = csv.writer(out, **how)
    writer.writerows([COLUMNS, *([r[name] for name in COLUMNS] for r in records)])
    return out.getvalue().encode()


def _tsv(records):
    rows = [COLUMNS, *([r[name] for name in COLUMNS] for r in records)]
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _json_lines(records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def _json(records):
    return json.dumps(records, indent=1).encode()


def _squad(records):
    return json.dumps({"version": "1.1", "data": records}).encode()


def _parquet(records):
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), out)
    return out.getvalue()


WRITERS = {
    "csv": _csv, "tsv": _tsv, "jsonl": _json_lines, "ndjson": _json_lines, "json": _json,
    "squad.json": _squad, "lines.json": _json_lines, "parquet": _parquet,
}  # fmt: skip


def _zstd(raw):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(raw)


PACKINGS = {"": lambda raw: raw, ".gz": functools.partial(gzip.compress, mtime=0), ".zst": _zstd}


def _read(path, columns=(), words=False):
    return [record for _, record in files.records(str(path), columns, words)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_in_every_case_and_packing(tmp_path, kind, case, packing):
    path = tmp_path / case(f"file.{kind}{packing}")
    path.write_bytes(PACKINGS[packing](WRITERS[kind](RECORDS)))
    assert files.holds_records(str(path))
    if kind == "parquet" and packing:
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            _read(path)
        return
    assert _read(path) == RECORDS


@pytest.mark.parametrize("packing", PACKINGS)
def test_text_is_one_record(tmp_path, packing):
    for name in ("a.txt", "A.TXT", "a.md", "a.en", "README", "gz", "json"):
        path = tmp_path / f"{name}{packing}"
        path.write_bytes(PACKINGS[packing]("first é\r\nsecond\n".encode()))
        assert _read(path) == [{"text": "first é\r\nsecond\n"}]
        assert not files.holds_records(str(path))


@pytest.mark.parametrize("word", ["GGUF", "LZIP", "PAR1", "OggS", "fLaC", "ARROW1", "MZ", "BM",
                                  "PK", "RIFF", "ID3", "BZh", "ORC", "Obj", "abcdftyp", "7z"])
def test_text_may_begin_like_anything(tmp_path, word):
    (tmp_path / "a.txt").write_text(f"{word} is how a file begins")
    assert _read(tmp_path / "a.txt") == [{"text": f"{word} is how a file begins"}]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "noname"])
def test_packed_without_saying_so(tmp_path, name):
    """First bytes decide on packing; .txt.gz that was renamed is no text of its own."""
    raw = {"a.jsonl": _json_lines, "a.csv": _csv}.get(name, lambda _: b"some text")(RECORDS)
    (tmp_path / name).write_bytes(gzip.compress(raw))
    plain = tmp_path / f"plain-{name}"
    plain.write_bytes(raw)
    assert _read(tmp_path / name) == _read(plain)


def test_parquet_without_saying_so(tmp_path):
    (tmp_path / "part-0").write_bytes(_parquet(RECORDS))
    assert files.holds_records(str(tmp_path / "part-0"))
    assert _read(tmp_path / "part-0") == RECORDS


# Texts that a table or a line can be torn by; every character that splitlines() splits at.
CHARACTERS = list('ab ,;\t"\'\\\n\r#|:{}[]0é它🙂\u2028\u2029\x85\x0b\x0c\x1c')


def _random_records(seed, without=""):
    draw = random.Random(seed)
    letters = [c for c in CHARACTERS if c not in without]
    text = lambda: "".join(draw.choices(letters, k=draw.randrange(12)))
    return [{"text": text() + "x", "label": text()} for _ in range(draw.randrange(1, 20))]


@pytest.mark.parametrize("seed", range(20))
def test_random_records_read_back(tmp_path, seed):
    """What Python's csv and json write, in every style that is not another delimiter, is read."""
    records = _random_records(seed)
    written = {
        "a.csv": _csv(records), "b.csv": _csv(records, quoting=csv.QUOTE_ALL),
        "c.csv": _csv(records, quoting=csv.QUOTE_ALL, lineterminator="\n"),
        "a.jsonl": _json_lines(records),
        "a.json": _json(records), "b.json": _squad(records), "c.json": _json_lines(records),
        "d.json": json.dumps(records).encode(), "a.parquet": _parquet(records),
    }  # fmt: skip
    for name, raw in written.items():
        (tmp_path / name).write_bytes(raw)
        assert _read(tmp_path / name) == records, name
    records = _random_records(seed, without="\t\n\r")
    (tmp_path / "a.tsv").write_bytes(_tsv(records))
    assert _read(tmp_path / "a.tsv") == records


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json"])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_unicode_marks(tmp_path, kind, encoding):
    text = WRITERS.get(kind, lambda _: "é it\r\nworks\u2028".encode())(RECORDS).decode()
    mark = "\ufeff" if encoding.endswith("e") else ""  # the others write it by themselves
    (tmp_path / f"marked.{kind}").write_bytes((mark + text).encode(encoding))
    (tmp_path / f"plain.{kind}").write_bytes(text.encode())
    assert _read(tmp_path / f"marked.{kind}") == _read(tmp_path / f"plain.{kind}")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_line_ends_of_windows(tmp_path, kind):
    raw = WRITERS[kind](RECORDS).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (tmp_path / f"a.{kind}").write_bytes(raw)
    assert _read(tmp_path / f"a.{kind}") == RECORDS


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"', "{}:2: not readable as JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]', "{}:3: holds a list, not a JSON object"),
        ("a.jsonl", b'"text"\n', "{}:1: holds a str"),
        ("a.jsonl", b"[" * 10**5, "{}:1: is nested deeper"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "{}:1: not readable as JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}', "{}:2 holds a lone surrogate"),
        ("a.jsonl", b'{"text": "\xed\xa0\xbd"}', "{}:1 is not UTF-8: byte 0xed at offset 10"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\0"}', r"{}:2 holds NUL bytes"),
        ("a.json", b'[{"text": "a"}, 3]', r"{}[1]: holds a int, not a JSON object"),
        ("a.json", b'[{"text": "a"}', "{}: not readable as JSON"),
        ("a.json", b'{"text": "a"}\n{"text"', "{}:2: not readable as JSON"),
        ("a.json", b'{"x": [{"a": 1}], "y": [{"a": 1}]}', "{} holds several lists of records"),
        ("a.json", b"3", "{}: holds a int, not a JSON object or list"),
        ("a.json", b"null", "{}: holds a NoneType, not a JSON object or list"),
        ("a.json", b'[{"text": "\\ud83d"}]', "{} holds a lone surrogate"),
        ("a.csv", b"a,b\n1,2\n3\n", "{}:3 has 1 columns, where the first line has 2"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "{}:3 is not CSV: unexpected end of data"),
        ("a.csv", b'a,b\n1,"2"3\n', "{}:2 is not CSV"),
        ("a.csv", b"a,a\n1,2\n", "{}:1 names the column 'a' twice"),
        ("a.csv", b"a,b\n1,caf\xe9\n", "{}:2 is not UTF-8: byte 0xe9"),
        ("a.csv", b"a,b\r1,2\r", "{}:1 is not CSV"),
        ("a.tsv", b"a\tb\n1\t2\t3\n", "{}:2 has 3 columns, where the first line has 2"),
        ("a.conll", b"EU B\nx\n", "{}:2 has 1 columns, but its sentence starts with 2"),
        ("a.txt", b"caf\xe9", "{} is not UTF-8: byte 0xe9 at offset 3"),
        ("a.txt", b"two\0words", "{} holds NUL bytes (the first at offset 3)"),
        ("a.txt", "two words".encode("utf-16-le"), "{} holds NUL bytes"),
        ("a.txt", "ab".encode("utf-16") + b"\0\xd8", "{} is not valid UTF-16"),
        ("a.txt", bytes(range(1, 256)), "{} is not text of a supported type"),
    ],
)
def test_damage_is_named(tmp_path, name, raw, message, packing):
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACKINGS[packing](raw))
    with pytest.raises(ConfigError, match=re.escape(message.format(path))):
        _read(path)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "json"])
def test_damaged_packing_is_named(tmp_path, kind, packing):
    """Cut anywhere, or (gzip has a sum) changed anywhere: never some of the file in silence."""
    random_text = random.Random(0).choices("abcdefghij", k=4000)
    records = [{"text": "".join(random_text[i : i + 40]), "label": ""} for i in range(0, 4000, 40)]
    raw = WRITERS.get(kind, lambda _: "".join(random_text).encode())(records)
    whole = PACKINGS[packing](raw)
    damaged = [whole[:n] for n in (0, 1, 2, 5, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    damaged += [raw, b"\0" * 100]
    if packing == ".gz":
        middle = len(whole) // 2
        damaged += [whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]]
        damaged += [whole + b"more that is no gzip"]
    path = tmp_path / f"a.{kind}{packing}"
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(f"{path} is not a valid ")):
            _read(path)
    path.write_bytes(whole + whole[:0] + PACKINGS[packing](b""))  # several members are one file
    assert _read(path)


BINARIES = {
    "bz2": lambda: __import__("bz2").compress(b"text" * 99),
    "xz": lambda: __import__("lzma").compress(b"text"),
    "zip": lambda: _archive("zip"), "tar": lambda: _archive("tar"), "npy": lambda: _saved("numpy"),
    "safetensors": lambda: _saved("safetensors"), "arrow": lambda: _saved("arrow"),
    "pkl": lambda: __import__("pickle").dumps([1]), "png": lambda: _saved("png"),
    "sqlite": lambda: b"SQLite format 3\0" + bytes(84), "wav": lambda: _saved("wav"),
    "pdf": lambda: _saved("pdf"),
}  # fmt: skip


def _archive(kind):
    import tarfile
    import zipfile

    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


def _saved(kind):
    out = io.BytesIO()
    if kind == "numpy":
        import numpy as np

        np.save(out, np.arange(3))
    elif kind == "safetensors":
        import numpy as np
        from safetensors.numpy import save

        return save({"x": np.zeros(3)})
    elif kind == "arrow":
        import pyarrow

        table = pyarrow.Table.from_pylist(RECORDS)
        with pyarrow.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    elif kind == "pdf":
        from matplotlib.figure import Figure

        Figure().savefig(out, format="pdf")
    elif kind == "png":
        from matplotlib import image

        image.imsave(out, [[0.0, 1.0]], format="png")
    elif kind == "wav":
        import wave

        with wave.open(out, "wb") as writer:
            writer.setnchannels(1), writer.setsampwidth(2), writer.setframerate(8000)
            writer.writeframes(b"abcd")
    return out.getvalue()


@pytest.mark.parametrize("suffix", BINARIES)
def test_what_is_no_text_is_refused(tmp_path, suffix):
    """By its name in any case, by what it holds under any name, and inside a gzip."""
    raw = BINARIES[suffix]()
    named = {f"a.{suffix}": raw, f"A.{suffix.upper()}": raw, f"b.{suffix}": b"some text"}
    named |= {f"b.{suffix}.gz": gzip.compress(raw), f"a.{suffix}-00000-of-00002": raw}
    for name, content in named.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} is not a text or table .*as .txt"):
            _read(tmp_path / name)
    for name, content in {"a.txt": raw, "a": raw, "a.txt.gz": gzip.compress(raw)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} (is not text of|holds NUL)"):
            _read(tmp_path / name)
    for name in ("b.jsonl", "b.csv", "b.tsv", "b.json"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ConfigError, match=name):
            _read(tmp_path / name)


def test_shards_are_what_they_are_shards_of(tmp_path):
    for name in ("a.jsonl-00000-of-00002", "a-00000-of-00002.jsonl", "a.jsonl-0-of-2.gz"):
        pack = PACKINGS[".gz" if name.endswith("gz") else ""]
        (tmp_path / name).write_bytes(pack(_json_lines(RECORDS)))
        assert _read(tmp_path / name) == RECORDS


@pytest.mark.parametrize(("kind", "library"), [("zst", "zstandard"), ("parquet", "pyarrow")])
def test_what_needs_a_library_says_which(tmp_path, monkeypatch, kind, library):
    (tmp_path / f"a.{kind}").write_bytes(_parquet(RECORDS) if kind == "parquet" else
                                         b"\x28\xb5\x2f\xfd and so on")  # fmt: skip
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=f"a.{kind} is a .* file; pip install {library}"):
        _read(tmp_path / f"a.{kind}")


def test_tables_without_a_header_go_by_number(tmp_path, config):
    (tmp_path / "a.tsv").write_text('it "was\t1\nok\t0\n')
    assert _read(tmp_path / "a.tsv", ["0", "1"]) == [
        {"0": 'it "was', "1": "1"}, {"0": "ok", "1": "0"}
    ]  # fmt: skip
    (tmp_path / "b.csv").write_text("1,0\nx,y\n")  # a header of numbers is a header
    assert _read(tmp_path / "b.csv", ["0"]) == [{"1": "x", "0": "y"}]


def test_tokens_a_line(tmp_path):
    """CoNLL-2003, a .tsv of sentences, CoNLL-U with a range, an empty node and comments."""
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O O\n\nEU NNP B-ORG\nsays VBZ O\n\nNo DT O\n")
    (tmp_path / "a.tsv").write_text("\nEU\tB-ORG\nsays\tO\n\n\nNo\tO\n\n")
    (tmp_path / "a.conllu").write_text(
        "# sent_id = 1\n# text = du\n1-2\tdu\t_\n1\tde\tADP\n1.1\t_\t_\n2\tle\tDET\n\n1\tNo\tINTJ"
    )
    assert _read(tmp_path / "a.conll") == [
        {"0": ["EU", "says"], "1": ["NNP", "VBZ"], "2": ["B-ORG", "O"]},
        {"0": ["No"], "1": ["DT"], "2": ["O"]},
    ]
    assert _read(tmp_path / "a.tsv", ["0", "1"], words=True) == [
        {"0": ["EU", "says"], "1": ["B-ORG", "O"]}, {"0": ["No"], "1": ["O"]}
    ]  # fmt: skip
    (tmp_path / "b.tsv").write_text("token\ttag\nEU\tB-ORG\n\nNo\tO\n")
    assert _read(tmp_path / "b.tsv", ["token", "tag"], words=True) == [
        {"token": ["EU"], "tag": ["B-ORG"]}, {"token": ["No"], "tag": ["O"]}
    ]  # fmt: skip
    first, second = _read(tmp_path / "a.conllu")
    assert first["form"] == first["1"] == ["de", "le"] and first["lemma"] == ["ADP", "DET"]
    assert second["form"] == ["No"]


SENTENCES = "EU NNP B-ORG\nsays VBZ O\n\nNo DT O\n\n"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", ["a.conll", "a.tsv", "a.txt", "eng.train", "a.CONLL"])
@pytest.mark.parametrize("language", ["", "en:", "zh-min-nan:"])
def test_sentences_under_any_name(tmp_path, name, packing, language):
    """Asked for columns by number; a language before every token is not part of them."""
    lines = [f"{language}{line}" if line else line for line in SENTENCES.split("\n")]
    text = "\n".join(lines).replace(" ", "\t" if name.endswith("tsv") else " ")
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACKINGS[packing](text.encode()))
    assert files.holds_records(str(path), ["0", "2"])
    assert _read(path, ["0", "2"], words=True) == [
        {"0": ["EU", "says"], "1": ["NNP", "VBZ"], "2": ["B-ORG", "O"]},
        {"0": ["No"], "1": ["DT"], "2": ["O"]},
    ]


@pytest.mark.parametrize(("name", "text", "tokens"), [
    ("a.tsv", "EU\tB\nx\tO\n\t\nNo\tO\n", [["EU", "x"], ["No"]]),  # WNUT 2017's blank lines
    ("a.tsv", "1\tB\nx\tO\n\n0\tO\n", [["1", "x"], ["0"]]),  # no header
    ("a.conll", "New York\tB\nx\tO\n\nNo\tO\n", [["New York", "x"], ["No"]]),
    ("a.conll", "-DOCSTART- O\n\na b\tB\n", [["a b"]]),
    ("a.conll", "\u3000 O\na\u00a0b   O \n\nNo O\t\n", [["\u3000", "a\u00a0b"], ["No"]]),
    ("a.tsv", "a b\tX Y\nc\tZ\n", ["a b", "c"]),  # a table
])  # fmt: skip
def test_what_is_between_words_and_sentences(tmp_path, name, text, tokens):
    (tmp_path / name).write_text(text)
    assert [record["0"] for record in _read(tmp_path / name, ["0", "1"], words=True)] == tokens


@pytest.mark.parametrize("header", [True, False])
def test_a_table_of_texts_may_have_blank_lines(tmp_path, header):
    """It is not a token a line: a text keeps all of its words."""
    columns = ["text", "label"] if header else ["0", "1"]
    rows = [["a b", "1"], ["c d e", "0"], ["f", "1"]]
    lines = ["\t".join(row) for row in [columns] * header + rows]
    (tmp_path / "a.tsv").write_text("\n\n".join(lines) + "\n")
    expected = [dict(zip(columns, row, strict=True)) for row in rows]
    assert _read(tmp_path / "a.tsv", columns) == expected


def test_parquet_is_as_strict_as_other_tables(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def told(columns, names):
        table = pyarrow.Table.from_arrays([pyarrow.array(x) for x in columns], names=names)
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(ConfigError) as raised:
            _read(tmp_path / "a.parquet")
        return str(raised.value)

    assert "a.parquet names the column 'text' twice" in told([["a"], ["b"]], ["text", "text"])
    latin = told([[b"ok", "café".encode("latin-1")]], ["text"])
    assert "a.parquet[1] is not UTF-8: byte 0xe9" in latin


MANGLED = [
    b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b'"', b"\xe9", b"\\ud83d", b"NaN", b"null", b"[",
    b"{", b"]", b"}", b",", b"\t", b"1e999", b"9" * 400, b"\xe2\x80\xa8", b"\xe3\x80\x80", b"-1",
    b"1.5", b"{}", b"[]", b'""', b"\x1f\x8b", b"PAR1\x15", b" ",
]  # fmt: skip
MANGLE = {kind: (write, {"text": "text", "label": "label"}) for kind, write in WRITERS.items()} | {
    "conll": (lambda _: b"EU NNP B\nsays VBZ O\n\nNo DT O\n", {"tokens": "0", "tags": "2"}),
    "conllu": (lambda _: b"1\tShe" + b"\t_" * 9 + b"\tA0\n2\tis" + b"\t_" * 8 + b"\tbe.01\tV\n",
               {"tokens": "form", "tags": "roles", "predicate": "predicate"}),
    "chat.jsonl": (lambda _: b'{"m": [{"from": "human", "value": "a"}]}\n', {"messages": "m"}),
    "qa.json": (lambda _: _squad([{"paragraphs": [{"context": "a b", "qas": QUESTIONS}]}]),
                {name: name for name in ("context", "question", "answers")}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANGLE)
def test_whatever_is_in_a_file_an_error_names_it(tmp_path, config, kind):
    """Bytes that are deleted, replaced and put in: read, or refused by name, never a traceback."""
    write, columns = MANGLE[kind]
    whole, draw, path = write(RECORDS), random.Random(kind), tmp_path / f"a.{kind}"
    config.data.update({f"{field}_column": column for field, column in columns.items()})
    refused = 0
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(draw.choice([1, 2, 4])):
            start = draw.randrange(len(raw) + 1)
            end = start + draw.choice([0, 0, 1, 2, 5, 20])
            raw[start:end] = draw.choice([draw.choice(MANGLED), bytes([draw.randrange(256)])])
        path.write_bytes(raw)
        try:
            sources.documents(str(path), config.data, tuple(columns))
        except ConfigError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused


def test_a_token_may_have_a_colon(tmp_path):
    (tmp_path / "a.conll").write_text("re:invent X\nat:y O\n\nre:do O\n")
    assert [r["0"] for r in _read(tmp_path / "a.conll")] == [["re:invent", "at:y"], ["re:do"]]


PREDICATES = """1\tShe\t_\t_\tARG0\tARG0
2\twants\twant.01\t_\tV\t_
2.1\tgone\t_\t_
3-4\tto fly\t_\t_
3\tto\t_\t_\t_\t_
4\tfly\tfly.01\t_\tARG1\tV

1\tNo\t\t_
"""


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_record_for_each_predicate(tmp_path, packing):
    """Universal PropBank: senses, then a column of arguments a predicate; O is no argument's."""
    rows = [line.split("\t") for line in PREDICATES.splitlines()]
    wide = ["\t".join([*r[:2], *"_" * 8, r[2], *r[4:]]) if len(r) > 1 else "" for r in rows]
    path = tmp_path / f"a.conllu{packing}"
    path.write_bytes(PACKINGS[packing](b"# text = x\n" + "\n".join(wide).encode()))
    records = _read(path, ["form", "predicate", "roles"])
    assert [(r["predicate"], r["sense"], r["roles"]) for r in records] == [
        (1, "want.01", ["B-ARG0", "O", "O", "B-ARG1"]), (3, "fly.01", ["B-ARG0", "O", "O", "O"]),
    ]  # fmt: skip
    assert all(r["form"] == ["She", "wants", "to", "fly"] for r in records)
    assert [r["form"] for r in _read(path, ["form"])] == [["She", "wants", "to", "fly"], ["No"]]


@pytest.mark.data
@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_predicate_of_propbank(shared_data, split):
    path = shared_data / f"propbank_ewt/{split}.conllu"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    senses = [line[10] for line in lines if len(line) > 10 and line[10] not in ("_", "")]
    records = _read(path, ["form", "predicate", "roles"])
    assert [r["sense"] for r in records] == senses
    assert all(len(r["roles"]) == len(r["form"]) > r["predicate"] for r in records)


QUESTIONS = [
    {"id": "a", "question": "What?", "answers": [{"text": "b", "answer_start": 2}]},
    {"id": "b", "question": "Who?", "answers": [], "is_impossible": True,
     "plausible_answers": [{"text": "b", "answer_start": 2}]},
]  # fmt: skip


@pytest.mark.parametrize("packing", PACKINGS)
def test_questions_with_their_context(tmp_path, packing):
    """SQuAD 1.1 and 2.0: a record a question."""
    paragraph = {"context": "a b", "qas": QUESTIONS}
    content = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph, paragraph]}]}
    path = tmp_path / f"a.json{packing}"
    path.write_bytes(PACKINGS[packing](json.dumps(content).encode()))
    assert _read(path) == 2 * [{"context": "a b"} | question for question in QUESTIONS]
    del paragraph["context"]
    path.write_bytes(PACKINGS[packing](json.dumps(content).encode()))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}\[0\]: .*SQuAD.*context"):
        _read(path)


def _write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "*/**/c*", "**", "a/**", "a/?.txt",
                                     "[ab]/*", "**/b/**/*.txt", "a**/*.txt", "a/*/c.txt",
                                     "**/.h*"])  # fmt: skip
def test_globs_without_links_are_pythons(tmp_path, monkeypatch, pattern):
    import glob

    _write(tmp_path, "a/a.txt", "a/b/c.txt", "b/c.txt", "x.txt", ".hidden", "a/.h/y.txt", "b/é.md")
    for spec in (f"{tmp_path}/{pattern}", pattern, f"./{pattern}"):
        monkeypatch.chdir(tmp_path)
        expected = sorted(p for p in glob.glob(spec, recursive=True) if os.path.isfile(p))
        if expected:
            assert [os.path.normpath(p) for p in files.named(spec)] == [
                os.path.normpath(p) for p in expected
            ]
        else:
            with pytest.raises(ConfigError, match="matches no file"):
                files.named(spec)


def test_each_real_file_is_read_once(tmp_path):
    """Whatever links and loops there are, of folders and of files; under its own name."""
    _write(tmp_path, "b/b.txt", "b/c/c.txt", "d.txt")
    for link, to in {"loop": ".", "b/up": "..", "b/c/top": "../..", "a": "b", "0.txt": "d.txt",
                     "itself": "itself", "gone.txt": "nowhere", "b/c/a.txt": "../b.txt"}.items():
        (tmp_path / link).symlink_to(to)
    own = [f"{tmp_path}/{name}" for name in ("b/b.txt", "b/c/c.txt", "d.txt")]
    assert sorted(map(os.path.realpath, files.named(f"{tmp_path}/**/*.txt"))) == own
    assert files.named(f"{tmp_path}/**/b.txt") == own[:1]
    assert files.named(f"{tmp_path}/**") == files.named(f"{tmp_path}/**/**") == own
    assert files.named(f"{tmp_path}/*/*/up/**/d.txt") == files.named(f"{tmp_path}/loop/*/up/d.txt")


@pytest.mark.parametrize("size", [0, 1, 5000, files.WHOLE, files.WHOLE + 1, 3 * files.WHOLE])
def test_fingerprint_notices_changes(tmp_path, size):
    """Any byte of a file that is hashed whole; of a larger one its ends, and its size."""
    raw = bytearray(random.Random(0).randbytes(size))
    path = tmp_path / "a.txt"

    def digest(content):
        path.write_bytes(content)
        return files.fingerprint(str(path))

    digests = {digest(raw), digest(raw + b"x")}
    places = {0, size // 3, size - 1} if size <= files.WHOLE else {0, size - 1}
    for place in places if size else ():
        changed = raw.copy()
        changed[place] ^= 1
        digests.add(digest(changed))
    assert len(digests) == 2 + (len(places) if size else 0)
    assert digest(raw) in digests


BOMB = """
import gzip, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**29, 3 * 2**29))
from llm_jax.config import ConfigError
from llm_jax.data import files
files.IN_MEMORY_BYTES = 2**24
try:
    for _ in files.records(sys.argv[1]): pass
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.conllu"])
def test_what_unpacks_to_too_much_is_refused_within_bounds(tmp_path, name):
    """2 GB of one line in 2 MB of gzip, where the process may take 1.5 GB in all."""
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(b"a" * 2**24, 1) * 128)
    args = [sys.executable, "-c", BOMB, str(path)]
    told = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    assert str(path) in told and "16,777,216 bytes" in told and "prepare" in told, told


def test_more_text_than_memory_takes_is_refused(tmp_path, config, monkeypatch):
    """Of one file, and of all that a name means together; records are read one at a time."""
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_json_lines([{"text": "a" * 90}] * 20)))
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("a" * 90)
    for spec in ("a.jsonl.gz", "*.txt", "a.jsonl.gz,3.txt"):
        with pytest.raises(ConfigError, match="1,000 bytes .* launch.py prepare"):
            sources.documents(",".join(f"{tmp_path}/{s}" for s in spec.split(",")), config.data)
    assert len(_read(tmp_path / "a.jsonl.gz")) == 20


@pytest.mark.parametrize("spec", ["a.txt,a.txt", "a.txt, *.txt", "./*.txt,link", "**,b.txt"])
def test_a_file_named_twice_is_refused(tmp_path, monkeypatch, config, spec):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, "a.txt", "b.txt")
    (tmp_path / "link").symlink_to("a.txt")
    with pytest.raises(ConfigError, match=r"names \S*(a.txt|b.txt|link) twice"):
        sources.documents(spec, config.data)
    assert len(sources.documents("a.txt,b.txt", config.data)) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "A.CSV.GZ", "a.parquet"])
def test_columns_are_named_alike(tmp_path, config, name):
    kind, _, packing = name.lower().removeprefix("a.").partition(".")
    records = [{"text": "first", "label": "1"}, {"text": "second", "label": "0"}]
    path = tmp_path / name
    path.write_bytes(PACKINGS[packing and f".{packing}"](WRITERS[kind](records)))
    config.data.text_column = "label"
    assert sources.documents(str(path), config.data) == [{"text": "1"}, {"text": "0"}]
    config.data.text_column = "body"
    told = f"data.text_column: 'body' is not in {re.escape(str(path))}"
    with pytest.raises(ConfigError, match=rf"{told}\S*, which has \['label', 'text'\]"):
        sources.documents(str(path), config.data)
    config.data.text_column = "text"
    assert sources.documents(str(path), config.data, ("text", "label")) == records
    config.data.source_column, config.data.target_column = "text", "label"
    pairs = sources.documents(str(path), config.data, ("source", "target"))
    assert pairs == [{"source": r["text"], "target": r["label"]} for r in records]


def test_columns_by_number(tmp_path, config):
    (tmp_path / "a.tsv").write_text("it \"was\t1\nok\t0\n")
    config.data.text_column, config.data.label_column = "0", "1"
    assert sources.documents(f"{tmp_path}/a.tsv", config.data, ("text", "label")) == [
        {"text": 'it "was', "label": "1"}, {"text": "ok", "label": "0"}
    ]  # fmt: skip
    config.data.text_column = "sentence"
    with pytest.raises(ConfigError, match="data.text_column: 'sentence' .*to a number from 0"):
        sources.documents(f"{tmp_path}/a.tsv", config.data)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    if os.geteuid() == 0:
        path = "/proc/self/mem"  # root may open any file, but not read this
    else:
        path = tmp_path / "a.txt"
        path.write_text("text")
        path.chmod(0)
    with pytest.raises(ConfigError, match=f"{path} cannot be read: "):
        _read(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "columns", "count", "first"),
    [
        ("sst2/dev.tsv", ["0", "1"], 872, {"0": "one long string of cliches", "1": "0"}),
        ("sst2/train.tsv", ["0", "1"], 6920, None),
        ("chnsenticorp/hotel_reviews.csv", ["review", "label"], 7766, None),
        ("scitldr/dev.jsonl", ["source", "target"], 619, None),
        ("wikiann_en/dev.tsv", ["0", "1"], 10000, None),
        ("cmrc2018/trial.json", ["context", "question", "answers", "id"], 1002, None),
        ("xquad/xquad.en.json", ["context", "question", "answers", "id"], 1190, None),
        ("propbank_ewt/dev.conllu", ["form", "upos", "10"], None, None),
        ("multi30k/val.de.gz", ["text"], 1, None),
    ],
)
def test_research_sets(shared_data, name, columns, count, first):
    path = shared_data / name
    records = _read(path, columns, words=name.startswith("wikiann"))
    if count is None:  # as many as sentences say their number
        count = path.read_text().count("\n# sent_id")
        form, text = records[0]["form"], "From the AP comes this story :"
        assert form == text.split()
    assert len(records) == count
    assert all(column in record for record in records for column in columns)
    assert first is None or records[0] == first

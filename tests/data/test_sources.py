import gzip
import json
import logging
import re

import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import corpus, sources
from tests import making


def test_builtin_corpus_is_large_deterministic_text():
    docs = corpus.python_documents()
    assert docs == corpus.python_documents()
    assert 5e6 < sum(map(len, docs)) < 12e6
    assert any('"""Heap queue algorithm' in doc for doc in docs)
    assert not any("class TestCase_Heap" in doc for doc in docs)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_reads_text_and_jsonl(tmp_path, config, packed):
    def write(name, text):
        raw = text.encode()
        if packed:
            name, raw = name + ".gz", gzip.compress(raw)
        (tmp_path / name).write_bytes(raw)

    write("b.txt", "second\r\nfile\n")
    write("a.txt", "first é")
    write("c.jsonl", '{"text": "one\\u2028line"}\n\n{"text": "two", "n": 1}\n{"text": ""}')
    texts = making.texts(sources.documents(f"{tmp_path}/*.txt*", config.data))
    assert texts == ["first é", "second\r\nfile\n"]
    both = making.texts(sources.documents(f"{tmp_path}/a.txt*, {tmp_path}/c.jsonl*", config.data))
    assert both == ["first é", "one\u2028line", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt' matches no file"),
        ("empty.txt", b"", "empty.txt' is empty"),
        ("header.csv", b"text,label\n", "header.csv' has a header, and no row with text"),
        ("blank.tsv", b"text\tlabel\n\t1\n", "blank.tsv' has a header, and no row with text"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
        ("cut.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "cut.txt.gz is not a valid gzip"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"', "bad.jsonl:2: not readable as JSON"),
        ("list.jsonl", b"[1]", "list.jsonl:1: holds a list, not a JSON object"),
        ("column.jsonl", b'{"body": "a", "id": 3}',
         r"column.jsonl:1, which has .*; set --config.data.text_column=NAME"),
        ("number.jsonl", b'{"text": 3}', "number.jsonl:1 must be text, not int"),
    ],
)
def test_bad_files_are_named(tmp_path, config, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        sources.documents(str(tmp_path / name), config.data)


@pytest.mark.parametrize(
    ("spec", "message"), [("builtin:pyhton", "builtin:python"), ("gs://b/a.txt", "is a URL")]
)
def test_what_is_no_source(config, spec, message):
    with pytest.raises(ConfigError, match=message):
        sources.documents(spec, config.data)


def _splits(config):
    return {name: making.texts(docs) for name, docs in sources.splits(config).items()}


def _jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_held_out_split_depends_on_content_only(tmp_path, config):
    texts = [f"document {i}" for i in range(60)] + ["twin"] * 40
    config.data.validation_fraction, config.data.test_fraction = 0.21, 0.11
    config.data.train = _jsonl(tmp_path / "a.jsonl", texts)
    split = _splits(config)
    config.data.train = _jsonl(tmp_path / "b.jsonl", texts[::-1])
    again = _splits(config)
    assert {name: set(docs) for name, docs in split.items()} == {
        name: set(docs) for name, docs in again.items()
    }
    assert sorted(sum(split.values(), [])) == sorted(texts)
    sets = [set(docs) for docs in split.values()]
    assert [len(s) for s in sets] == [41, 13, 7]  # of 61, to the nearest
    assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize(("folds", "test"), [(2, 0.0), (3, 0.2), (7, 0.1)])
def test_folds_hold_each_document_out_once(tmp_path, config, folds, test):
    """But for those of the test set, which is the same for all of them."""
    texts = [f"document {i}" for i in range(20)] + ["twin"] * 4
    config.data.train = _jsonl(tmp_path / "a.jsonl", texts)
    config.data.folds, config.data.test_fraction = folds, test
    held, tests, sizes = [], set(), set()
    for config.data.fold in range(folds):
        split = _splits(config)
        assert sorted(sum(split.values(), [])) == sorted(texts)
        assert not set(split["train"]) & set(split["validation"])
        held += split["validation"]
        tests.add(tuple(split["test"]))
        sizes.add(len(set(split["validation"])))
    assert len(tests) == 1 and bool(*tests) == bool(test)
    assert sorted([*held, *tests.pop()]) == sorted(texts)
    assert max(sizes) - min(sizes) <= 1
    config.data.folds = 22
    with pytest.raises(ConfigError, match="data.folds=22: needs as many different documents"):
        _splits(config)


@pytest.mark.parametrize("fold", ["folds=1", "folds=3,fold=3"])
def test_folds_that_are_none_are_refused(fold):
    with pytest.raises(ConfigError, match="must be 0, or at least 2 and above data.fold"):
        configs.load("", [f"data.{x}" for x in fold.split(",")])


def test_one_document_is_cut_in_order(tmp_path, config):
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    (tmp_path / "one.txt").write_text(text)
    config.data.train = str(tmp_path / "one.txt")
    config.data.validation_fraction = 0.1
    assert _splits(config) == {"train": [text[:900]], "validation": [text[900:]], "test": []}
    config.data.test_fraction = 0.2
    assert _splits(config) == {
        "train": [text[:700]], "validation": [text[700:800]], "test": [text[800:]]
    }  # fmt: skip


def test_what_is_evaluated_is_dropped_from_train(tmp_path, config, caplog):
    config.data.train = _jsonl(tmp_path / "train.jsonl", ["a", "b", "c", "b"])
    config.data.validation = _jsonl(tmp_path / "validation.jsonl", ["b", "d", "e"])
    config.data.test = _jsonl(tmp_path / "test.jsonl", ["c", "d"])
    with caplog.at_level(logging.WARNING):
        split = _splits(config)
    assert split == {"train": ["a"], "validation": ["b", "e"], "test": ["c", "d"]}
    assert "data.train: dropped 3 of 4 documents" in caplog.text


def test_same_file_for_train_and_validation_is_refused(tmp_path, config):
    config.data.train = config.data.validation = _jsonl(tmp_path / "a.jsonl", ["a", "b"])
    with pytest.raises(ConfigError, match=re.escape("data.train: every document is also in")):
        _splits(config)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_impossible_fractions(tmp_path, config, fraction):
    config.data.train = _jsonl(tmp_path / "a.jsonl", ["a", "b", "c"])
    config.data.validation_fraction = fraction
    with pytest.raises(ConfigError, match="validation_fraction"):
        _splits(config)

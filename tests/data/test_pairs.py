import gzip
import json
import re

import pytest

from llm_jax.config import ConfigError
from llm_jax.data import sources
from tests import making

FIELDS = ("source", "target")


@pytest.fixture
def pairs_config(config):
    config.objective.name, config.model.kind = "seq2seq", "encoder_decoder"
    return config


def _write(path, lines):
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(path)


def test_parallel_files_by_line(tmp_path, pairs_config):
    a = _write(tmp_path / "a.en.gz", ["one", "two ", "", "four", ""])
    b = _write(tmp_path / "b.de.gz", ["eins", "zwei", "drei", "vier"])
    (tmp_path / "c.en").write_text("five\r\nsix\n")
    (tmp_path / "c.de").write_text("fünf\nsechs")
    spec = f"{a}, {b}, {tmp_path}/c.en, {tmp_path}/c.de"
    pairs = making.pairs(sources.documents(spec, pairs_config.data, FIELDS))
    numbers = [("one", "eins"), ("two", "zwei"), ("four", "vier")]
    assert pairs == [*numbers, ("five", "fünf"), ("six", "sechs")]
    assert sources.texts(making.records(numbers)) == ["one", "eins", "two", "zwei", "four", "vier"]


def test_columns_of_jsonl(tmp_path, pairs_config):
    records = [{"article": ["One.", "Two."], "short": "1"}, {"article": "b", "short": " "}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    pairs_config.data.source_column, pairs_config.data.target_column = "article", "short"
    pairs = sources.documents(str(tmp_path / "a.jsonl"), pairs_config.data, FIELDS)
    assert making.pairs(pairs) == [("One. Two.", "1")]
    pairs_config.data.target_column = "summary"
    with pytest.raises(ConfigError, match="data.target_column: 'summary' is not in .*a.jsonl:1"):
        sources.documents(str(tmp_path / "a.jsonl"), pairs_config.data, FIELDS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{0}/a.en", "or 2 text files at a time"),
        ("{0}/a.en,{0}/a.de,{0}/a.en", "or 2 text files at a time"),
        ("{0}/a.en,{0}/a.de", "{0}/a.en has 2 lines and {0}/a.de has 3"),
        ("{0}/a.en,{0}/a.fr", "'{0}/a.fr' matches no file"),
        ("{0}/empty,{0}/empty", "{0}/empty, {0}/empty are empty"),
        ("builtin:python", "or 2 text files at a time"),
    ],
)
def test_what_is_not_parallel_is_named(tmp_path, pairs_config, spec, message):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei\n")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match=re.escape(message.format(tmp_path))):
        sources.documents(spec.format(tmp_path), pairs_config.data, FIELDS)


def test_pairs_are_split_by_content(tmp_path, pairs_config):
    lines = [f"line {i}" for i in range(50)]
    a, b = _write(tmp_path / "a.gz", lines), _write(tmp_path / "b.gz", lines[::-1])
    pairs_config.data.train, pairs_config.data.validation_fraction = f"{a},{b}", 0.2
    split = making.splits(pairs_config)
    assert [len(part) for part in split.values()] == [40, 10, 0]
    assert not set(making.pairs(split["train"])) & set(making.pairs(split["validation"]))
    pairs_config.data.validation = f"{a},{b}"
    with pytest.raises(ConfigError, match="data.train: every document is also in"):
        making.splits(pairs_config)


@pytest.mark.data
def test_multi30k(pairs_config, shared_data):
    folder = shared_data / "multi30k"
    pairs_config.data.train = f"{folder}/val.en.gz,{folder}/val.de.gz"
    test = f"{folder}/test_2016_flickr"
    pairs_config.data.validation = f"{test}.en.gz,{test}.de.gz"
    pairs_config.model.max_length = 256
    split = making.splits(pairs_config)
    assert len(split["train"]) == 1014 and len(split["validation"]) == 1000
    assert split["train"][0]["source"] == "A group of men are loading cotton onto a truck"
    tokenizer = making.build_tokenizer(pairs_config, split["train"])
    batch = next(making.train_iterator(pairs_config, tokenizer, split["train"]))
    assert batch["encoder_segment_ids"].max() == batch["segment_ids"].max() > 1


@pytest.mark.data
def test_scitldr(pairs_config, shared_data):
    file = str(shared_data / "scitldr" / "test.jsonl")
    pairs = sources.documents(file, pairs_config.data, FIELDS)
    assert len(pairs) == 618

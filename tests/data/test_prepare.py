import gzip
import importlib.abc
import json
import sys

import numpy as np
import pytest

from llm_jax import commands, objectives
from llm_jax.config import ConfigError, load
from llm_jax.data import chunks, files, lazy, prepare, sources, tokenizers
from tests import making


def prepared(*options):
    """What `launch.py prepare` returns; of bad input the error that it shows."""
    return commands.prepare.run(*commands._read(["prepare", *options]))


TEXTS = [f"This is document number {i} of the set. " * (1 + i % 5) for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared set with a train and a test split."""
    folder = tmp_path_factory.mktemp("tfds")
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / "test.md").write_text("For the test.")
    sources = [f"--config.data.train={folder}/*.txt", f"--config.data.test={folder}/test.md"]
    prepared("--name=small", *sources, f"--tfds_dir={folder}")
    return folder


@pytest.fixture
def tfds_config(folder, config):
    config.data.tfds_dir = str(folder)
    config.data.train = "tfds:small"
    config.data.validation_fraction = 0.1
    return config


@pytest.mark.parametrize("limit", [2**31, 0], ids=["in_memory", "lazy"])
def test_prepared_set_reads_back(tfds_config, monkeypatch, limit):
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", limit)
    split = making.splits(tfds_config)
    assert {name: len(docs) for name, docs in split.items()} == {
        "train": 27, "validation": 3, "test": 1
    }  # fmt: skip
    assert sorted(making.texts([*split["train"], *split["validation"]])) == sorted(TEXTS)
    assert making.texts(split["test"]) == ["For the test."]
    assert isinstance(split["train"], list) == (limit > 0)


def test_a_tokenizer_sees_all_of_a_small_set_and_of_a_large_one_an_even_part(config, monkeypatch):
    config.tokenizer.name = "chars"
    docs = [{"text": chr(ord("A") + i)} for i in range(100)]
    seen = lambda: [ord(c) for c in prepare._tokenizer(config, iter(docs), ()).units]
    assert seen() == [ord(doc["text"]) for doc in docs]
    monkeypatch.setattr(prepare, "TRAINING_CHARACTERS", 10)
    assert 5 <= len(seen()) <= 11 and len({*np.diff(seen())}) == 1


def test_reads_without_tensorflow(tfds_config, monkeypatch):
    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            assert name.split(".")[0] != "tensorflow", "TensorFlow was imported"

    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    assert len(sources.documents("tfds:small@train[:10]", tfds_config.data)) == 10


@pytest.mark.parametrize("size", [16, 256, 2**20])
def test_lazy_set_trains_and_resumes(tfds_config, monkeypatch, size):
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(chunks, "CHUNK", size)
    docs = making.splits(tfds_config)["train"]
    tokenizer = tokenizers.Bytes()
    iterator = making.train_iterator(tfds_config, tokenizer, docs)
    states, batches = [], []
    for _ in range(12):
        states.append(iterator.get_state())
        batches.append(next(iterator))
    for i in (0, 3, 7, 11):
        again = making.train_iterator(tfds_config, tokenizer, docs)
        again.set_state(states[i])
        for expected in batches[i:]:
            got = next(again)
            assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_lazy_set_evaluates_once(tfds_config, monkeypatch):
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 0)
    docs = making.splits(tfds_config)["validation"]
    batches = list(making.eval_batches(tfds_config, tokenizers.Bytes(), docs))
    assert sum(batch["weights"].sum() for batch in batches) == sum(
        len(doc["text"]) + 1 for doc in docs
    )


@pytest.fixture(scope="module")
def tokens(folder):
    """The same texts as tokens of a tokenizer trained on them, and of bytes."""
    args = [f"--config.data.train={folder}/*.txt", f"--tfds_dir={folder}", "--tokens"]
    prepared("--name=pieces", *args, "--config.tokenizer.vocab_size=300")
    prepared("--name=bytes", *args, "--config.tokenizer.name=bytes")


def test_prepares_more_than_memory_takes(tmp_path, config, monkeypatch):
    """A record at a time, as the refusal of reading it whole recommends."""
    texts = [f"{i} " * 40 for i in range(100)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.JSONL.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 1000)
    with pytest.raises(ConfigError, match="launch.py prepare"):
        sources.documents(f"{tmp_path}/a.JSONL.gz", config.data)
    spec = f"--config.data.train={tmp_path}/a.JSONL.gz"
    prepared("--name=large", spec, f"--tfds_dir={tmp_path}")
    config.data.tfds_dir = str(tmp_path)
    docs = sources.documents("tfds:large", config.data)
    assert isinstance(docs, lazy.Lazy)
    assert sorted(doc["text"] for doc in docs) == sorted(texts)


def test_a_damaged_file_leaves_no_set(tmp_path, config):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 5 + '{"text"')
    args = ["--name=cut", f"--config.data.train={tmp_path}/a.jsonl", f"--tfds_dir={tmp_path}"]
    with pytest.raises(ConfigError, match="a.jsonl:6: not readable as JSON"):
        prepared(*args)
    config.data.tfds_dir = str(tmp_path)
    with pytest.raises(ConfigError, match="tfds:cut is not prepared"):
        sources.documents("tfds:cut", config.data)
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n')
    prepared(*args)


def _of_tokens(config, stored, tokenizer):
    config.data.train = f"tfds:{stored}"
    config.tokenizer.update(tokenizer)
    docs = making.splits(config)
    return docs, making.build_tokenizer(config, docs["train"])


@pytest.mark.parametrize("name", ["pieces", "bytes"])
def test_stored_tokens_are_those_of_the_text(tfds_config, tokens, name, monkeypatch):
    kinds = {"pieces": {"name": "bpe", "vocab_size": 300}, "bytes": {"name": "bytes"}}
    split, tokenizer = _of_tokens(tfds_config, name, kinds[name])
    assert {name: len(docs) for name, docs in split.items()} == {
        "train": 27, "validation": 3, "test": 0
    }  # fmt: skip
    read = [tokenizer.decode(doc["tokens"]) for part in split.values() for doc in part]
    assert sorted(read) == sorted(TEXTS)
    assert split["train"][0]["tokens"].dtype == np.uint16

    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 0)
    tfds_config.data.train = "tfds:small@train"
    text = making.splits(tfds_config)["train"]
    both = [lazy.Lazy([{"text": tokenizer.decode(doc["tokens"])} for doc in split["train"]],
                         text.columns), split["train"]]  # fmt: skip
    both = [making.train_iterator(tfds_config, tokenizer, docs) for docs in both]
    for _ in range(5):
        a, b = map(next, both)
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("name", "tokenizer", "message"),
    [
        ("pieces", {"name": "bpe", "vocab_size": 400}, "vocab_size: 300 there, 400 here"),
        ("pieces", {"name": "bytes"}, "data.train: is stored as tokens of a tokenizer other"),
        ("bytes", {"name": "chars"}, "tokenizer.name: 'bytes' there, 'chars' here"),
        ("bytes", {"name": "bytes", "specials": ("[MASK]",)}, "tokens of a tokenizer other"),
    ],
)
def test_tokens_of_another_tokenizer_are_refused(tfds_config, tokens, name, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        split, made = _of_tokens(tfds_config, name, tokenizer)
        making.train_iterator(tfds_config, made, split["train"])


def test_pairs_are_not_read_from_tokens(tfds_config, tokens):
    with pytest.raises(ConfigError, match="tfds:bytes is stored as tokens; pairs"):
        sources.documents("tfds:bytes", tfds_config.data, ("source", "target"))


@pytest.mark.parametrize(
    ("spec", "column", "message"),
    [
        ("tfds:nowhere", "text", "tfds:nowhere is not prepared in .* --file_format=array_record"),
        ("tfds:imdb_reviews", "text", "imdb_reviews is not prepared.*SOURCES.txt,TARGETS.txt"),
        ("tfds:small@dev", "text", r"no split 'dev'; it has \['test', 'train'\]"),
        ("tfds:small", "body", r"data.text_column: 'body' .* has \['text'\]"),
        ("tfds:not a name", "text", "tfds:not a name cannot be opened"),
    ],
)
def test_what_is_missing_is_named(tfds_config, spec, column, message):
    tfds_config.data.text_column = column
    with pytest.raises(ConfigError, match=message):
        sources.documents(spec, tfds_config.data)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--name=small", "--config.data.train={}/00.txt"], "already exists"),
        (["--name=Small", "--config.data.train={}/00.txt"], "lower-case"),
        (["--name=other", "--config.data.train={}/nothing*"], "matches no file"),
        (["--name=other", "--tokens", "--config=configs/finetune/tag.py"], "reads tokens, tags;"),
        (["--name=other", "--clean=exacts"], "--clean=exacts: unknown step 'exacts'; known: ftfy"),
        (["--name=other", "--clean=length:a"], "must be like length:MINIMUM:MAXIMUM"),
        (["--name=other", "--clean=near:1:2:3"], "--clean=near:1:2:3: must be like near:BANDS:ROW"),
        (["--name=other", "--clean=stop_words:{}/no.txt"], "no.txt cannot be read"),
        (["--name=other", "--clean=quality:9", "--config.data.train={}/00.txt"],
         "removes all documents of data.train .*stop words"),
    ],
)  # fmt: skip
def test_prepare_refuses(folder, args, message):
    with pytest.raises(ConfigError, match=message):
        prepared(*[arg.format(folder) for arg in args], f"--tfds_dir={folder}")


RECORDS = {
    "classify": {"text": "a b", "label": "1"},
    "tag": {"tokens": ["New York", "is"], "tags": ["B-LOC", "O"]},
    "roles": {"form": ["we", "go"], "predicate": 1, "roles": ["B-ARG0", "O"]},
    "answer": {"context": "a b", "question": "b?", "answers": [{"text": "b", "answer_start": 2}]},
    "translate": {"source": "ä", "target": "b"},
    "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "embed": {"text": "a", "pair": "b"},
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("clean", ["", "ftfy,length:1,exact,near"])
def test_records_of_every_objective_come_back_as_they_went(name, clean, tmp_path):
    for package in ("ftfy", "datasketch"):
        pytest.importorskip(package)
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORDS[name]) + "\n")
    recipe = f"--config=configs/finetune/{name}.py"
    overrides = [f"data.train={tmp_path}/a.jsonl"]
    overrides += ["data.pair_column=pair"] * (name == "embed")
    keys = [f"--config.{text}" for text in overrides]
    done = prepared("--name=it", recipe, *keys, f"--clean={clean}", f"--tfds_dir={tmp_path}")
    assert done["documents"] == {"train": 1}
    config = load(f"configs/finetune/{name}.py", overrides)
    config.data.tfds_dir = str(tmp_path)
    wanted = objectives.get(config.objective.name).examples.columns(config)
    docs = sources.documents("tfds:it", config.data, wanted)
    assert docs == sources.documents(f"{tmp_path}/a.jsonl", config.data, wanted)
    assert [*docs[0].values()] == [RECORDS[name].get(config.data[f"{x}_column"]) for x in wanted]


def test_a_data_card_counts_what_was_read_removed_and_kept(tmp_path):
    """By hand: ten documents, of which two are of others, one is broken, one is in the test set."""
    for package in ("ftfy", "datasketch"):
        pytest.importorskip(package)
    row = lambda text, label: json.dumps({"text": text, "label": label}) + "\n"
    train = [("sun and rain over the hills today", 1), ("a cat sat on the mat", 0), ("no", 0),
             ("a cat sat on the mat", 1), ("A cat sat, on the mat!", 0),
             ("the caf\u00c3\u00a9 is open", 1), ("held out from all the rest", 1)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(row(*pair) for pair in train))
    (tmp_path / "t.jsonl").write_text(row(*train[-1]) + row("no", 1))
    args = [f"--config.data.train={tmp_path}/a.jsonl", f"--config.data.test={tmp_path}/t.jsonl",
            "--config=configs/finetune/classify.py", f"--tfds_dir={tmp_path}"]  # fmt: skip
    clean = "--clean=ftfy,length:2:100,exact,near"
    cards = []
    for name in ("one", "two"):
        done = prepared(f"--name={name}", *args, clean)
        assert done["documents"] == {"test": 2, "train": 3}
        cards.append((tmp_path / name / "1.0.0" / "README.md").read_text())
    assert cards[0].replace("# one", "") == cards[1].replace("# two", "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in cards[0].splitlines()
            if line.startswith("|")]  # fmt: skip
    for expected in (
        ["ftfy", "train", "changed", "1"],
        ["length:2:100", "test", "short", "1"], ["length:2:100", "train", "short", "1"],
        ["exact", "train", "as in test", "1"], ["exact", "train", "as in train", "1"],
        ["near", "train", "as in train", "1"],
        ["train", "read", "7", str(sum(len(text) for text, _ in train)), "36", "–"],
        ["train", "stored", "3", str(33 + 20 + 16), "17", "–"],
        ["1", "100.0%", "66.7%"], ["0", "0.0%", "33.3%"],
        ["train", "16", "16", "16", "20", "33", "33", "33"],
    ):  # fmt: skip
        assert expected in rows, (expected, rows)
    assert len(rows) == 26
    assert "`{\"text\": \"no\", \"label\": \"0\"}`" in cards[0]
    config = load("configs/finetune/classify.py", [])
    config.data.tfds_dir = str(tmp_path)
    docs = sources.documents("tfds:one", config.data, ("text", "label"))
    assert {doc["text"] for doc in docs} == {train[0][0], train[1][0], "the café is open"}
    assert len(sources.documents("tfds:one@test", config.data, ("text", "label"))) == 2


def test_tokens_are_of_cleaned_text_and_so_is_their_tokenizer(tmp_path, config):
    pytest.importorskip("datasketch")
    texts = ["one two three four five six", "ONE two three four five six", "x " * 60]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    prepared("--name=clean", f"--config.data.train={tmp_path}/a.jsonl", "--clean=length:1:50,near",
             "--tokens", "--config.tokenizer.name=chars", f"--tfds_dir={tmp_path}")  # fmt: skip
    config.data.tfds_dir, config.tokenizer.name = str(tmp_path), "chars"
    docs = sources.documents("tfds:clean", config.data)
    tokenizer = docs.its_own(config.tokenizer)
    assert [tokenizer.decode(doc["tokens"]) for doc in docs] == texts[:1]
    assert "O" not in tokenizer.units
    card = (tmp_path / "clean" / "1.0.0" / "README.md").read_text()
    assert f"| train | stored | 1 | 27 | 6 | {len(docs[0]['tokens'])} |" in card


def test_what_is_prepared_may_be_prepared_again_but_not_tokens(folder, tokens, tmp_path):
    args = [f"--config.data.tfds_dir={folder}", f"--tfds_dir={tmp_path}", "--clean=exact"]
    done = prepared("--name=again", "--config.data.train=tfds:small", *args)
    assert done["documents"] == {"train": len(TEXTS)}
    with pytest.raises(ConfigError, match="'tfds:bytes' is stored as tokens; prepare its text"):
        prepared("--name=ids", "--config.data.train=tfds:bytes", *args)

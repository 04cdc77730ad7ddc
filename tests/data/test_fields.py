"""Tests of the values of fields, read from all file formats and TFDS datasets."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from llm_jax.config import COLUMNS, KEYS, ConfigError
from llm_jax.data import fields, files, sources
from llm_jax.data.fields import document, field

ANSWERS = [{"text": "b", "answer_start": 2}, {"text": "c", "answer_start": 4}]
MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("text", "a b", "a b"),
        ("source", ["One.", "Two."], "One. Two."),
        ("label", "x", "x"),
        ("label", 3, "3"),
        ("label", True, "1"),
        ("label", 2.5, "2.5"),
        ("label", " good ", "good"),
        ("label", np.int64(3), "3"),
        ("tokens", ["a", "b c"], ["a", "b c"]),
        ("tokens", "a  b c", ["a", "b", "c"]),
        ("tokens", ["\u3000", " a"], ["\u3000", " a"]),
        ("tags", [0, 2], ["0", "2"]),
        ("tags", np.array([0, 2]), ["0", "2"]),
        ("tags", [b"B-PER"], ["B-PER"]),
        ("predicate", 3, 3),
        ("predicate", "3", 3),
        ("answers", ANSWERS, ANSWERS),
        ("answers", {"text": ["b", "c"], "answer_start": np.array([2, 4])}, ANSWERS),
        ("answers", json.dumps(ANSWERS), ANSWERS),
        ("answers", {"text": np.array([], object), "answer_start": np.array([], int)}, []),
        ("answers", [], []),
        ("answers", "b", [{"text": "b", "answer_start": -1}]),
        ("messages", MESSAGES, MESSAGES),
        ("messages", ["Hi.", "Hello."], MESSAGES),
        ("messages", "Hi.", MESSAGES[:1]),
        ("messages", json.dumps(MESSAGES), MESSAGES),
        ("messages", [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}],
         MESSAGES),
    ],
)  # fmt: skip
def test_values_are_read(name, value, wanted):
    read = document({"x": value}, {name: "x"})[name]
    if name == "messages":
        read = [{key: message[key] for key in ("role", "content")} for message in read]
    assert read == wanted and type(read) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 3), ("text", None), ("text", ["a", 3]), ("text", {"a": 1}),
        ("label", None), ("label", ["a"]), ("label", float("nan")), ("label", float("inf")),
        ("messages", [{"from": "function_call", "value": "f()"}]),
        ("tokens", 3), ("tokens", [["a"]]), ("tags", [None]),
        ("predicate", "verb"), ("predicate", 1.5), ("answers", 3), ("answers", [{"text": "b"}]),
        ("answers", [{"text": 3, "answer_start": 0}]), ("answers", "[1"), ("messages", 3),
        ("messages", [{"role": "user"}]), ("messages", [{"content": "Hi."}]), ("messages", [3]),
        ("messages", [{"role": "user", "content": 3}]),
    ],
)  # fmt: skip
def test_other_values_are_refused_with_their_place(tmp_path, config, name, value):
    path = tmp_path / "a.jsonl"
    good = {f: field(f).sample for f in COLUMNS}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | {name: value})}\n")
    told = f"data.{name}_column: '{name}' of {path}:2 must be {field(name).must}, not "
    with pytest.raises(ConfigError, match=re.escape(told + type(value).__name__)):
        sources.documents(str(path), config.data, (name,))


def test_every_column_has_a_key_and_a_value_that_can_be_read():
    for name in COLUMNS:
        assert f"data.{name}_column" in KEYS
        assert document({"x": field(name).sample}, {name: "x"}) == {name: field(name).sample}
    assert fields.FIELDS.keys() <= COLUMNS.keys()


def test_instructions_become_messages_by_the_lines_of_the_docs(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Greet.", "input": "", "output": "Hi.\u2028"}]  # fmt: skip
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    exec(lines.partition("```python\n")[2].partition("```")[0], {})
    docs = sources.documents("chats.jsonl", config.data, ("messages",))
    said = [[(turn["role"], turn["content"]) for turn in doc["messages"]] for doc in docs]
    assert said == [[("user", "Add.\n\n1 2"), ("assistant", "3")],
                    [("user", "Greet."), ("assistant", "Hi.\u2028")]]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "start"), [
    ("b a", 4, 6), ("b", 0, 2), ("b", 9, 6), ("b", -1, 2), ("B", 2, -1), ("b.*", 0, -1),
    ("a", 99, 8),
])  # fmt: skip
def test_an_answer_is_where_the_context_has_it(text, said, start):
    """SQuAD 2.0 and CMRC 2018 say a wrong place of some; of an answer that is not there, none."""
    other = {"text": "a b", "answer_start": 0}
    record = {"context": "a b b b a", "answers": [{"text": text, "answer_start": said}, other]}
    read = document(record, {"context": "context", "answers": "answers"})["answers"]
    placed = {"text": text, "answer_start": start}
    assert read == ([placed, other] if start >= 0 else [other, placed])


def test_tokens_and_tags_are_as_many(tmp_path, config):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["a", "b"], "tags": ["O"]}')
    with pytest.raises(ConfigError, match=f"data.tags_column: 'tags' of {path}:1 has 1 for 2"):
        sources.documents(str(path), config.data, ("tokens", "tags"))


@pytest.mark.parametrize("place", [-1, 2])
def test_a_predicate_is_one_of_the_tokens(place):
    record, names = {"tokens": ["a", "b"], "predicate": place}, ("tokens", "predicate")
    with pytest.raises(ConfigError, match=f"'predicate' of .* is {place}; must be an index"):
        document(record, dict(zip(names, names, strict=True)))


def test_a_column_inside_another(tmp_path, config):
    """As Hugging Face has translations."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"translation": {"en": "dog", "de": "Hund"}, "a.b": "x"}')
    config.data.source_column, config.data.target_column = "translation.en", "translation.de"
    pair = {"source": "dog", "target": "Hund"}
    assert sources.documents(str(path), config.data, ("source", "target")) == [pair]
    config.data.text_column = "a.b"
    assert sources.documents(str(path), config.data) == [{"text": "x"}]
    config.data.text_column = "translation.fr"
    with pytest.raises(ConfigError, match=r"'translation.fr' is not in .*\['a.b', 'translation'\]"):
        sources.documents(str(path), config.data)


def test_what_is_blank_is_left_out(tmp_path, config):
    rows = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": [], "tags": []}]
    rows += [{"question": "a", "context": "b", "answers": []}]
    rows += [{"question": " ", "context": "b", "answers": ANSWERS}]
    for i, pair in enumerate([rows[:2], rows[2:]]):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in pair))
        assert sources.documents(str(path), config.data, tuple(pair[0])) == pair[:1]


def test_what_a_tokenizer_is_trained_on():
    docs = [
        {"tokens": ["a", "b"], "tags": ["X", "Y"], "predicate": 1},
        {"context": "c", "question": "d", "answers": ANSWERS},
        {"messages": MESSAGES}, {"text": "e", "label": "Z"},
    ]  # fmt: skip
    lists = [["a b"], ["c", "d"], ["Hi.", "Hello."], ["e"]]
    assert sources.texts(docs) == [text for part in lists for text in part]
    for doc, part in zip(docs, lists, strict=True):
        lazy = sources.Lazy([doc], {name: name for name in doc})
        assert list(sources.texts(lazy)) == ["\n".join(part)]


def test_splits_go_by_what_is_read(tmp_path, config):
    """Predicates of a sentence, and questions about a text, are of one split."""
    rows = [
        {"tokens": [f"{i}", "x"], "tags": [f"{j}", "O"], "predicate": j}
        | {"context": f"about {i}", "question": f"{j}?", "answers": []}
        for i in range(40) for j in range(2)
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.train, config.data.validation_fraction = str(tmp_path / "a.jsonl"), 0.25
    for names, key in ((("tokens", "tags", "predicate"), "tokens"),
                       (("context", "question", "answers"), "context")):  # fmt: skip
        split = sources.splits(config, names)
        train, held = ({str(doc[key]) for doc in split[s]} for s in ("train", "validation"))
        assert (len(split["train"]), len(split["validation"])) == (60, 20)
        assert not train & held


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("wikiann_en/dev.tsv", {"tokens": "0", "tags": "1"}, 10000),
        ("propbank_ewt/dev.conllu", {"tokens": "form", "tags": "upos"}, 2002),
        ("propbank_ewt/dev.conllu",
         {"tokens": "form", "tags": "roles", "predicate": "predicate"}, 4977),
        ("cmrc2018/trial.json", {n: n for n in ("context", "question", "answers")},
         1000),  # of 1,002, two of which ask nothing
        ("xquad/xquad.en.json", {n: n for n in ("context", "question", "answers")}, 1190),
        ("scitldr/dev.jsonl", {"source": "source", "target": "target"}, 619),
    ],
)  # fmt: skip
def test_research_sets_become_documents(shared_data, config, name, columns, count):
    config.data.update({f"{key}_column": column for key, column in columns.items()})
    docs = sources.documents(str(shared_data / name), config.data, tuple(columns))
    assert len(docs) == count
    if name.startswith("wikiann"):
        assert docs[0]["tokens"][:3] == ["Sioux", "Falls", "Arena"]
        assert docs[0]["tags"][:3] == ["B-ORG", "I-ORG", "I-ORG"]
    if name.startswith("xquad"):
        starts = [(doc["context"], a["text"], a["answer_start"])
                  for doc in docs for a in doc["answers"]]  # fmt: skip
        assert all(context[i : i + len(text)] == text for context, text, i in starts)


@pytest.mark.parametrize("limit", [2**31, 0], ids=["in_memory", "lazy"])
def test_tfds_sets_have_fields_too(tmp_path, config, monkeypatch, limit):
    """Features as those of glue, conll2003, squad and wmt; labels by their names."""
    import tensorflow_datasets as tfds

    F = tfds.features
    words = ["I", "sleep"]
    row = {"sentence": "good", "label": 1, "tokens": words, "ner": [2, 0], "score": 2.5,
           "context": "a b c", "question": "what?", "answers": ANSWERS,
           "pair": {"en": "dog", "de": "Hund"}}  # fmt: skip

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path
        name = "fields"

        def _info(self):
            answers = F.Sequence({"text": F.Text(), "answer_start": np.int32})
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({
                "sentence": F.Text(), "label": F.ClassLabel(names=["bad", "good"]),
                "tokens": F.Sequence(F.Text()), "score": np.float32,
                "ner": F.Sequence(F.ClassLabel(names=["O", "B-PER", "I-PER"])),
                "context": F.Text(), "question": F.Text(), "answers": answers,
                "pair": F.Translation(languages=("en", "de")),
            }))  # fmt: skip

        def _split_generators(self, dl_manager):
            return {"train": iter([(0, row), (1, row | {"label": -1, "answers": []})])}

        def _generate_examples(self):
            raise NotImplementedError

    Set(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", limit)
    config.data.tfds_dir, config.data.text_column = str(tmp_path), "sentence"
    config.data.tags_column = "ner"
    config.data.source_column, config.data.target_column = "pair.en", "pair.de"
    read = lambda *names: list(sources.documents("tfds:fields", config.data, names))
    assert read("text", "label") == [{"text": "good", "label": x} for x in ("good", "-1")]
    assert read("tokens", "tags") == 2 * [{"tokens": words, "tags": ["I-PER", "O"]}]
    asked = {"context": "a b c", "question": "what?"}
    assert read("context", "question", "answers") == [
        asked | {"answers": ANSWERS}, asked | {"answers": []}
    ]  # fmt: skip
    assert read("source", "target") == 2 * [{"source": "dog", "target": "Hund"}]
    config.data.label_column = "score"
    assert read("text", "label")[0] == {"text": "good", "label": "2.5"}
    config.data.source_column = "pair.fr"
    with pytest.raises(ConfigError, match="data.source_column: 'pair.fr'"):
        read("source", "target")


def test_rows_left_out_for_a_blank_field_are_counted(tmp_path, config, caplog):
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\ngood\t1\n \t0\nbad\t0\n\t1\n")
    config.data.label_column = "label"
    assert len(sources.documents(str(file), config.data, ("text", "label"))) == 2
    assert f"{file}: skipped 2 rows with an empty text or label" in caplog.text
    assert f"the first at {file}:3" in caplog.text

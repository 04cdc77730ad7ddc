"""Tests of tagging: alignment of words and tokens, answers, and seqeval's scores."""

import json

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import objectives
from llm_jax.data import sources, tokenizers
from llm_jax.objectives import scores, tagging
from llm_jax.train.loop import Trainer
from tests import making

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")


def settings(**changes):
    keys = {
        "objective.name": "tagging", "model.kind": "encoder", "model.head": "token",
        "model.max_length": 16, "model.num_layers": 1, "model.embed_dim": 16,
        "model.num_heads": 2, "data.packing": "none", "data.batch_size": 8,
        "tokenizer.name": "bytes", "data.labels": TAGS,
    }  # fmt: skip
    c = configs.base()
    c.update_from_flattened_dict(keys | {k.replace("__", "."): v for k, v in changes.items()})
    configs.check(c)
    return c


def trained_tokenizer(name, size=60):
    c = configs.base()
    c.tokenizer.name, c.tokenizer.vocab_size = name, size
    words = ["low lower lowest new newer newest wide wider widest, (slow) slower-slowest U.S. it's"]
    return tokenizers.build(c.tokenizer, words * 20)


KINDS = {"bytes": tokenizers.Bytes(), "bpe": None, "wordpiece": None}


def kind(name):
    KINDS[name] = KINDS[name] or trained_tokenizer(name, 300 if name == "bpe" else 60)
    return KINDS[name]


@pytest.mark.parametrize("seed", range(40))
def test_spans_and_scores_are_seqevals(seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    rng = np.random.default_rng(seed)
    pool = TAGS if seed % 2 else (*TAGS, "E-A", "S-A", "E-B", "S-B")  # BIOES, and what is no BIO
    draw = lambda n: [str(x) for x in rng.choice(pool, n)]
    lengths = rng.integers(1, 12, 6)
    gold, guess = ([draw(n) for n in lengths] for _ in range(2))
    for tags in (*gold, *guess):
        theirs = [(start, end + 1, kind) for kind, start, end in labelling.get_entities(tags)]
        assert scores.entities(tags) == theirs
    expected = {
        "precision": seqeval.precision_score(gold, guess, zero_division=0),
        "recall": seqeval.recall_score(gold, guess, zero_division=0),
        "f1": seqeval.f1_score(gold, guess, zero_division=0),
    }
    assert scores.spans(gold, guess) == pytest.approx(expected)
    assert scores.spans(gold, gold)["f1"] == bool(sum(map(len, map(scores.entities, gold))))


def sure(tags):
    """A row of which each token has a tag, of probability 1."""
    return {"tag": tags, "probability": np.ones(len(tags))}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("longest", [5, 9, 16, 64])
def test_each_word_gets_its_own_tag_back(name, longest):
    """Through rows of any length: of what the rows say at first tokens, and nowhere else."""
    what = making.examples(settings(model__max_length=longest), kind(name))
    rng = np.random.default_rng(longest)
    words = ["lower", "new", "(", "slow", ")", "U.S.", "it's", "it", "'s", "widest", "x"]
    for count in (1, 2, 7, 20):
        tokens = [str(x) for x in rng.choice(words, count)]
        record = {"tokens": tokens, "tags": [str(x) for x in rng.choice(TAGS, count)]}
        rows = what.examples(record, None, None)
        assert all(len(row["tokens"]) <= longest for row in rows)
        assert sum(int(row["weights"].sum()) for row in rows) == count
        # What is right at the first tokens and wrong elsewhere.
        said = [sure(np.where(row["weights"] > 0, row["tags"], 4)) for row in rows]
        answer = what.answer({"tokens": tokens}, said)
        assert answer["tags"] == record["tags"]
        text = " ".join(tokens)
        for entity in answer["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
        wanted = [(kind, " ".join(tokens[a:b])) for a, b, kind in scores.entities(record["tags"])]
        assert [(e["type"], e["text"]) for e in answer["entities"]] == wanted
        assert what.score([record], [answer])["accuracy"] == 1
        unseen = what.examples({"tokens": tokens}, None, None)  # without tags the rows are alike
        for a, b in zip(rows, unseen, strict=True):
            assert np.array_equal(a["tokens"], b["tokens"])


def test_first_tokens_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = kind("wordpiece")
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for tokens in (["lower", "it's", "(slow)", "newest"], ["U.S.", "x", "widest,"]):
        encoded = theirs(tokens, is_split_into_words=True)
        numbers = encoded.word_ids()
        first = [n is not None and n not in numbers[:i] for i, n in enumerate(numbers)]
        (row,) = making.examples(settings(model__max_length=64), tokenizer).examples(
            {"tokens": tokens}, None, None
        )
        assert row["tokens"].tolist() == encoded["input_ids"]
        row = making.examples(settings(model__max_length=64), tokenizer).examples(
            {"tokens": tokens, "tags": ["B-A"] * len(tokens)}, None, None
        )[0]
        assert (row["weights"] > 0).tolist() == first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann went (to) Rome.", ["Ann", "went", "(", "to", ")", "Rome", "."]),
        ("我在北京2024年", ["我", "在", "北", "京", "2024", "年"]),
        ("", []),
        ("  naïve  ", ["naïve"]),
    ],
)
def test_a_text_is_cut_in_words(text, words):
    found, spans = tagging.spelled({"text": text})
    assert found == text and [text[a:b] for a, b in spans] == words


def test_a_tag_that_training_has_not_counts_as_missed():
    c = settings(data__labels=())
    documents = [{"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tokens": ["c"], "tags": ["I-X"]}]
    objectives.get("tagging").resolve(c, documents)
    assert c.data.labels == ("O", "B-X", "I-X") and c.model.num_labels == 3
    what = making.examples(c, tokenizers.Bytes())
    record = {"tokens": ["a", "b"], "tags": ["B-X", "B-NEW"]}
    (row,) = what.examples(record, None, None)
    assert row["weights"].sum() == 1
    found = what.score([record], [{"tags": ["B-X", "O"]}])
    assert found == {"accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}


def test_parts_of_speech_have_scores_of_classes():
    what = making.examples(settings(data__labels=("NOUN", "VERB")), tokenizers.Bytes())
    record = {"tokens": ["a", "b"], "tags": ["NOUN", "VERB"]}
    answer = what.answer(record, [sure(np.zeros(5, int))])
    assert answer == {"tags": ["NOUN", "NOUN"]}
    assert what.score([record], [answer])["accuracy"] == 0.5


@pytest.mark.parametrize("name", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_run_learns_tags_and_answers_with_offsets(name, tmp_path, silent):
    """Names begin with a capital; a second capital goes on with the first."""
    rng = np.random.default_rng(0)
    word = lambda: "".join(rng.choice(list("abc"), 3))
    for file, count in (("train", 200), ("valid", 20)):
        rows = []
        for _ in range(count):
            tokens = [word().title() if rng.random() < 0.4 else word() for _ in range(3)]
            marks = [token[0].isupper() for token in tokens]
            tags = ["O" if not m else "I-N" if i and marks[i - 1] else "B-N"
                    for i, m in enumerate(marks)]  # fmt: skip
            rows.append(json.dumps({"tokens": tokens, "tags": tags}))
        (tmp_path / f"{file}.jsonl").write_text("\n".join(rows))
    c = settings(
        data__train=str(tmp_path / "train.jsonl"), data__validation=str(tmp_path / "valid.jsonl"),
        data__labels=(), data__batch_size=16, model__kind=name, model__embed_dim=32,
        train__steps=150, eval__every=150, optimizer__learning_rate=5e-3,
        optimizer__warmup_steps=10,
    )  # fmt: skip
    trainer = Trainer(c, tmp_path / "run", silent, jax.devices()[:1])
    last = trainer.run()
    assert last["eval_f1"] > 0.9 and last["eval_accuracy"] > 0.9
    assert c.data.labels == ("O", "B-N", "I-N")
    assert len(trainer.evaluate().answers) == 20


def test_a_predicate_is_marked_and_its_arguments_are_scored():
    c = settings(objective__name="roles", model__type_vocab_size=2, model__max_length=64)
    tokenizer = tokenizers.Bytes()
    what = making.examples(c, tokenizer)
    tokens, tags = ["slow", "newest", "widest,", "slow"], ["O", "B-A", "I-A", "O"]
    for place, text in enumerate(("[ slow ] newest widest, slow", "slow [ newest ] widest, slow",
                                  "slow newest [ widest, ] slow", "slow newest widest, [ slow ]")):
        record = {"tokens": tokens, "predicate": place, "tags": tags}
        (row,) = what.examples(record, None, None)
        assert tokenizer.decode(row["tokens"]) == text
        assert tokenizer.decode(row["tokens"][row["types"] > 0]).strip() == tokens[place]
        assert row["weights"].sum() == 4  # markers have no tag; a predicate's word has one, too
        answer = what.answer(record, [sure(np.where(row["weights"] > 0, row["tags"], 4))])
        assert answer["tags"] == tags
    answer = what.answer(record, [sure(row["tags"])])
    role = {"start": 5, "end": 19, "type": "A", "text": "newest widest,", "score": 1.0}
    assert answer["roles"] == [role]
    gold = [record | {"tags": ["B-A", "B-V", "O", "B-B"]}]
    found = what.score(gold, [{"tags": ["B-A", "B-V", "B-B", "O"]}])
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5}  # B-V counts on neither side


@pytest.mark.data
def test_propbank_is_read_for_roles(shared_data):
    c = configs.load("configs/finetune/roles.py", ["tokenizer.name=bytes"])
    objective = objectives.get("roles")
    objective.check(c)
    docs = sources.documents(
        str(shared_data / "propbank_ewt" / "test.conllu"), c.data, objective.examples.columns(c)
    )
    objective.resolve(c, docs)
    assert {"O", "B-ARG0", "B-ARG1", "B-ARGM-TMP"} <= {*c.data.labels}
    what = objective.examples(tokenizers.Bytes(), c)
    record = max(docs[:200], key=lambda doc: len(doc["tokens"]) * len({*doc["tags"]}))
    rows = what.examples(record, None, None)
    answer = what.answer(record, [sure(row["tags"]) for row in rows])
    assert answer["tags"] == record["tags"] and what.score([record], [answer])["f1"] == 1


def test_tags_that_training_does_not_have_are_told(caplog):
    c = configs.base()
    c.data.labels = ("O", "B-X")
    docs = [{"tags": ["B-Y", "O"]}, {"tags": ["B-Y", "B-X"]}]
    objectives.get("tagging").held_out(c, "validation", docs)
    assert "tags missing from the training set count as errors: B-Y 2" in caplog.text

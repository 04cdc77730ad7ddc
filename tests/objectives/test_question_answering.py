"""Tests of context windows, span selection, and the scores of SQuAD and CMRC."""

import difflib
import importlib.util
import itertools
import re
import string
from contextlib import nullcontext

import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import models, objectives
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers
from llm_jax.objectives import question_answering, scores
from tests import making

TOKENIZER = tokenizers.Bytes()
CONTEXT = "Ann lives in Rome, Bob in Oslo; née Li, she (Ann) moved in 1999 from Bonn to the sea."


def settings(**changes):
    keys = {
        "objective.name": "question_answering", "model.kind": "encoder", "model.head": "span",
        "model.type_vocab_size": 2, "model.max_length": 32, "model.num_layers": 1,
        "model.embed_dim": 16, "model.num_heads": 2, "data.packing": "none",
        "tokenizer.name": "bytes", "data.doc_stride": 8,
    }  # fmt: skip
    c = configs.base()
    c.update_from_flattened_dict(keys | {k.replace("__", "."): v for k, v in changes.items()})
    configs.check(c)
    return c


def record(text="Oslo", question="Where is Bob?"):
    answers = [{"text": text, "answer_start": CONTEXT.index(text)}] if text else []
    return {"context": CONTEXT, "question": question, "answers": answers}


@pytest.mark.parametrize(("longest", "stride"), [(24, 3), (32, 8), (32, 500), (64, 20), (512, 128)])
@pytest.mark.parametrize("answer", ["Ann", "Oslo", "née Li", "the sea."])
def test_windows_cover_the_context_and_point_at_the_answer(longest, stride, answer):
    c = settings(model__max_length=longest, data__doc_stride=stride)
    what = making.examples(c, TOKENIZER)
    rows, windows = what.examples(record(answer), None, None), what.windows(record(answer))
    assert len(rows) == len(windows)
    seen = np.zeros(len(CONTEXT), bool)
    for row, window in zip(rows, windows, strict=True):
        assert len(row["tokens"]) <= longest and row["tokens"][-1] == TOKENIZER.eos_id
        assert (row["types"] == (np.arange(len(row["tokens"])) >= window.start)).all()
        for start, end in window.spans:
            seen[start:end] = True
        first, last = int(row["first"][0]), int(row["last"][0])
        said = TOKENIZER.decode(row["tokens"][first : last + 1])
        inside = window.spans[0, 0] <= CONTEXT.index(answer)
        inside &= CONTEXT.index(answer) + len(answer) <= window.spans[-1, 1]
        assert (said == answer) if inside else (first == last == 0)
    assert seen.all()
    if stride + len(answer.encode()) <= len(windows[0].spans):  # else it may lie across an edge
        assert any(row["first"][0] for row in rows)


def test_a_question_without_an_answer_points_at_the_first_token(caplog):
    c = settings()
    what = making.examples(c, TOKENIZER)
    assert {int(row["first"][0]) for row in what.examples(record(""), None, None)} == {0}
    assert not c.objective.no_answer
    objectives.get("question_answering").resolve(c, [record(), record("")])
    assert c.objective.no_answer and not caplog.text
    lost = record() | {"answers": [{"text": "nowhere", "answer_start": -1}]}
    objectives.get("question_answering").resolve(c, [record(), lost])
    assert "the answers to 1 of 2 questions do not occur in their context" in caplog.text


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("no_answer", [False, True])
def test_the_answer_is_the_best_of_all_spans(seed, no_answer):
    """Against every pair of tokens of every window, tried one by one."""
    what = making.examples(settings(objective__no_answer=no_answer), TOKENIZER)
    rng = np.random.default_rng(seed)
    windows = what.windows(record())
    rows = [{x: rng.normal(size=32).astype(np.float32) for x in ("start", "end")} for _ in windows]
    if seed % 2:
        for row in rows:
            row["start"][0] += 5
    tried = []
    for window, row in zip(windows, rows, strict=True):
        for i, j in itertools.combinations_with_replacement(range(len(window.spans)), 2):
            if j - i < question_answering.LONGEST:
                a, b = row["start"][window.start + i], row["end"][window.start + j]
                tried.append(
                    (float(a) + float(b), CONTEXT[window.spans[i, 0] : window.spans[j, 1]])
                )
    if no_answer:
        tried.append((float(min(row["start"][0] + row["end"][0] for row in rows)), ""))
    ranked = list(dict.fromkeys(text.lstrip() for _, text in sorted(tried, reverse=True)))
    answer = what.answer(record(), rows)
    found, text = answer["answer"], ranked[0]
    said = list(dict.fromkeys(x["text"] for x in answer["n_best"]))
    assert said == ranked[: len(said)] and len(answer["n_best"]) == question_answering.N_BEST
    assert found["text"] == text == CONTEXT[found["start"] : found["end"]]
    assert 0 < found["score"] < 1


@pytest.mark.parametrize(("text", "found", "refused"), [
    ("北京", None, True), ("北京", object(), False), ("Oslo", None, False),
])  # fmt: skip
def test_only_chinese_answers_need_nltk(text, found, refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    documents = [record() | {"answers": [{"text": text, "answer_start": 0}]}]
    with pytest.raises(ConfigError, match="pip install") if refused else nullcontext():
        question_answering.OBJECTIVE.resolve(settings(), documents)


def test_probabilities_of_large_logits_are_those_of_small_ones():
    """A softmax does not change when all logits do; in float64 exp(710) is infinite."""
    window = question_answering.Window(np.arange(4), 1, np.array([[0, 1], [2, 3], [4, 5]]))
    row = {"start": np.array([0.0, 1, 2, -1]), "end": np.array([1.0, 0, 3, 2])}
    large = {name: x + 1000 for name, x in row.items()}

    def probabilities(row):
        spans, nothing = question_answering.best(window, row)
        return [probability for _, probability, *_ in (*spans, nothing)]

    np.testing.assert_allclose(probabilities(large), probabilities(row))
    p, q = (np.exp(x) / np.exp(x).sum() for x in row.values())
    assert probabilities(row)[0] == pytest.approx(p[2] * q[2])  # start 2, end 3: the likeliest


def test_the_loss_is_of_both_ends_and_knows_no_padding():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 2)).astype(np.float32)
    mask = np.arange(6) < [[6], [4], [0]]  # the last row only fills up a batch
    first, last = np.array([0, 1, 0]), np.array([0, 3, 0])
    batch = {"tokens": np.zeros((3, 6), int), "segment_ids": mask.astype(int)}
    outputs = models.Outputs(None, None, heads={"span": logits})
    terms, metrics = question_answering.losses(
        outputs, batch | {"first": first, "last": last}, settings().objective
    )
    expected = 0
    for row, n in ((0, 6), (1, 4)):
        for x, end in ((logits[row, :n, 0], first), (logits[row, :n, 1], last)):
            expected += (np.log(np.exp(x).sum()) - x[end[row]]) / 2
    assert terms["rows"] == pytest.approx(expected, rel=1e-5)
    assert question_answering.OBJECTIVE.weights(batch)["rows"] == 2


def squad_says(gold, guess):
    """The rules of Rajpurkar 2016, 6.1, and 2018: case, punctuation, articles, white space."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split(" ")

    def f1(a, b):
        if a == [""] or b == [""]:
            return float(a == b)
        left, same = list(b), 0
        for word in a:
            if word in left:
                left.remove(word)
                same += 1
        precision, recall = same / len(b), same / len(a)
        return 2 * precision * recall / (precision + recall) if same else 0.0

    gold = [text for text in gold if words(text) != [""]]
    pairs = [(words(text), words(guess)) for text in gold or [""]]
    return max(float(a == b) for a, b in pairs), max(f1(a, b) for a, b in pairs)


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_squad(seed):
    rng = np.random.default_rng(seed)
    pool = ["the", "a", "Oslo", "oslo,", "in", "1999", "The U.S.", "it's", "-", "sea", "An"]
    draw = lambda: " ".join(rng.choice(pool, rng.integers(0, 5)))
    gold = [[draw() for _ in range(rng.integers(0, 4))] for _ in range(20)]
    guess = [draw() if rng.random() < 0.5 or not some else some[0].upper() for some in gold]
    exact, f1 = np.mean([squad_says(*pair) for pair in zip(gold, guess, strict=True)], 0)
    assert scores.answers(gold, guess) == pytest.approx({"exact_match": exact, "f1": f1})


@pytest.mark.parametrize(
    ("gold", "guess", "exact", "f1"),
    [  # by hand, from the rules of CMRC 2018 (Cui 2019, 4.1)
        ("北京大学", "北京大学。", 1, 1),
        ("北京大学", "在北京大学", 0, 8 / 9),
        ("北京大学", "大学北京", 0, 4 / 8),
        ("1999年5月", "1999年", 0, 4 / 6),
        ("Nexon公司", "nexon", 0, 1 / 2),
        ("上海", "北京", 0, 0),
        ("±10m", "±10m。MP", 0, 0),  # one word, once the marks are gone
        ("它是don't", "don't", 0, 2 * 2 / (4 + 2)),  # do, n't
    ],
)
def test_scores_of_chinese_are_those_of_cmrc(gold, guess, exact, f1):
    assert scores.answers([[gold]], [guess]) == pytest.approx({"exact_match": exact, "f1": f1})


@pytest.mark.parametrize("seed", range(10))
def test_chinese_overlap_is_the_longest_common_run(seed):
    rng = np.random.default_rng(seed)
    a, b = ("".join(rng.choice(list("我在北京上"), rng.integers(1, 12))) for _ in range(2))
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    same = match.find_longest_match(0, len(a), 0, len(b)).size
    assert scores.answers([[a]], [b])["f1"] == pytest.approx(2 * same / (len(a) + len(b)))

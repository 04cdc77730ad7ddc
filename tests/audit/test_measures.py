"""Tests of context, meaning, privacy, bias and robustness on cases with known answers."""

import dataclasses
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm_jax import audit, models
from llm_jax import config as configs
from llm_jax.audit import bias, context, meaning, privacy, robustness, subject
from llm_jax.config import ConfigError
from llm_jax.data import tokenizers


class Oracle:
    """A subject whose log-probabilities a function of the text gives."""

    options = audit.Options(examples=16)

    def __init__(self, score):
        self.score = score

    def log_likelihoods(self, texts, starts=None):
        return np.array([float(self.score(text)) for text in texts])


def test_a_likelihood_is_of_the_ids_from_its_start_on(monkeypatch):
    """Where each id's log-probability is the id."""
    said = lambda model, params, rows, starts, batch_size: [
        (sum(row[start:]), True) for row, start in zip(rows, starts, strict=True)
    ]
    monkeypatch.setattr(subject, "log_likelihoods", said)
    read, tokenizer = object.__new__(subject.Subject), tokenizers.Bytes()
    read.config = configs.base()
    read.lm = SimpleNamespace(model=None, params=None, tokenizer=tokenizer)
    assert read.log_likelihoods([[5, 6, 7], [8], [1, 2]], [1, 0, 2]).tolist() == [13, 8, 0]
    found = read.log_likelihoods([[5, 6, 7], "ab"])
    assert found.tolist() == [18, tokenizer.encode("ab").sum()]


def test_auc_and_roc_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    member = rng.random(200) < 0.4
    scores = np.round(rng.normal(size=200) + member, 1)  # with ties
    assert privacy.auc(scores, member) == pytest.approx(metrics.roc_auc_score(member, scores))
    fpr, tpr = privacy.roc(scores, member)
    theirs = metrics.roc_curve(member, scores, drop_intermediate=False)
    np.testing.assert_allclose((fpr, tpr), theirs[:2])
    assert privacy.at_low(scores, member) == theirs[1][theirs[0] <= 0.05].max()


def test_exposure_is_that_of_chance_for_what_was_never_seen_and_the_most_for_what_is_likeliest():
    rng, draws = np.random.default_rng(0), {}
    unseen = Oracle(lambda text: draws.setdefault(text, rng.random()))
    bits = [privacy.exposure(unseen, f"my pin is {n}") for n in range(10_000, 10_060)]
    # Ranks are uniform: log2 of their inverse is exponential, of mean and deviation 1 / ln 2.
    mean = 1 / math.log(2)
    assert np.mean(bits) == pytest.approx(mean, abs=4 * mean / math.sqrt(60))
    learnt = Oracle(lambda text: text == "my pin is 48213")
    assert privacy.exposure(learnt, "my pin is 48213") == pytest.approx(math.log2(1001))
    with pytest.raises(ConfigError, match="has no digits"):
        privacy.exposure(learnt, "my pin")


@pytest.mark.parametrize("run", ["gpt", pytest.param("classifier", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_untrained_model_tells_no_members(run, request):
    subject = audit.Subject(request.getfixturevalue(run))
    drawn = jax.jit(models.init_params, static_argnums=0)(subject.lm.model, jax.random.key(7))
    subject.lm = dataclasses.replace(subject.lm, params=drawn)
    found = privacy.membership(subject)[0][0]
    assert found["name"].endswith("AUC") and found["low"] <= 0.5 <= found["high"]


def test_what_a_model_writes_itself_is_extracted(gpt):
    subject = audit.Subject(gpt)
    tokenizer = subject.lm.tokenizer
    prompts = [[tokenizer.bos_id, *map(int, tokenizer.encode(x))] for x in ("abcd", "ddca")]
    options = {"max_new_tokens": privacy.SUFFIX, "temperature": 0.0, "imported": False}
    written = subject.lm.generate(prompts, **options)
    texts = [np.array([*prompt[1:], *out["tokens"]])
             for prompt, out in zip(prompts, written, strict=True)]  # fmt: skip
    assert privacy.extracted(subject, texts, 4).all()
    texts[0][-1] += 1
    assert privacy.extracted(subject, texts, 4).tolist() == [False, True]
    assert privacy.extracted(subject, texts, 60) is None


def test_weat_of_constructed_vectors():
    rng = np.random.default_rng(0)
    near = lambda axis: np.eye(4)[axis] + 0.1 * rng.normal(size=(8, 4))
    x, y, a, b = map(near, (0, 1, 0, 1))
    effect, p = bias.weat(x, y, a, b)
    assert 1.8 < effect <= 2 and p < 0.01  # 2 is the most there can be
    back, other = bias.weat(y, x, a, b)
    assert back == pytest.approx(-effect) and other > 0.99
    assert bias.weat(x, x, a, b)[0] == pytest.approx(0)
    effects = [bias.weat(*rng.normal(size=(4, 8, 4)))[1] for _ in range(40)]
    assert 0.3 < np.mean(effects) < 0.7  # p is uniform where nothing is


def test_equalised_odds_of_groups():
    group, gold = np.repeat([0, 1], 100), np.tile([0, 1], 100)
    assert bias.equalised_odds(group, gold, gold) == 0
    guess = gold.copy()
    guess[(group == 1) & (gold == 1)] = np.tile([0, 1], 25)  # half of them are missed
    assert bias.equalised_odds(group, gold, guess) == pytest.approx(0.5)


def test_swaps_find_a_preference_and_none_where_there_is_none():
    lists = {"swaps": [["he", "she"], ["man", "woman"]], "templates": ["{} runs.", "so {} says"]}
    prefers = Oracle(lambda text: 3.0 * bool(re.search(r"\bhe\b", text)))
    prefers.kind = "words"
    found = bias.counterfactual(prefers, lists)
    assert found == {"he/she": [3.0, 3.0], "man/woman": [0.0, 0.0]}


def test_the_needle_is_found_by_one_who_reads_and_by_others_as_often_as_by_chance():
    class Tokens:
        encode = staticmethod(lambda text: np.array([ord(c) for c in text]))

    def reads(row):
        text = "".join(map(chr, row))
        return text[-5:] in text[:-5]

    rng, hay = np.random.default_rng(0), np.full(500, ord("x"))
    for score, low, high in ((reads, 1, 1), (lambda row: rng.random(), 0.05, 0.45)):
        subject = Oracle(score)
        subject.lm = type("LM", (), {"tokenizer": Tokens})
        right, gain = context.needle(subject, hay, 120, 0.5, 60)
        assert low <= right.mean() <= high
        assert (gain == 1).all() or score is not reads


def test_minimal_pairs_differ_and_are_judged():
    rng = np.random.default_rng(0)
    for make in meaning.PHENOMENA.values():
        good, bad = make(rng)
        assert good != bad and good.endswith(".")
    length = Oracle(lambda text: -len(text))
    assert meaning.prefers(length, [("a", "bb"), ("ccc", "d")]).tolist() == [True, False]


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    class LM:
        @staticmethod
        def batch(texts):
            return {"segment_ids": np.ones((len(texts), 1)), "texts": texts}

        @staticmethod
        def hidden_states(batch):
            plural = [" teachers " in x or re.search(r"\w+s \w+[^s]\.$", x) is not None
                      for x in batch["texts"]]  # fmt: skip
            noise = np.random.default_rng(0).normal(size=(2, len(plural), 1, 3))
            noise[1, :, 0, 0] = plural
            return noise

    subject = Oracle(None)
    subject.lm = LM
    nothing, number = meaning.probes(subject)
    assert 0.35 < nothing["number"].mean() < 0.65
    assert number["number"].mean() > 0.97
    assert number["control task"].mean() < 0.7


def test_changes_are_as_strong_as_they_say():
    rng, text = np.random.default_rng(0), " ".join(["letters"] * 1000)
    for name, change in robustness.CHANGES.items():
        assert change(text, 0.0, rng) == text, name
    share = lambda name: np.mean([
        word != "letters" for word in robustness.CHANGES[name](text, 0.25, rng).split()])
    assert share("typing errors") == pytest.approx(0.25, abs=0.05)
    assert share("upper case") == pytest.approx(0.25, abs=0.05)
    assert len(robustness.CHANGES["words left out"](text, 0.25, rng).split()) < 800


@pytest.mark.slow
def test_a_classifier_that_knows_two_words_is_as_robust_as_they_are(classifier):
    subject = audit.Subject(classifier, options=audit.Options(examples=40))
    result = robustness.measure(subject)
    assert result["curves"]["words swapped"] == pytest.approx([1, 1, 1, 1])
    left = result["curves"]["words left out"]
    # Where the word is lost, and at half strength it is in half of the texts, a guess is left.
    assert left[0] == 1 and 0.55 < left[-1] < 0.95

"""Tests of the dataset summary before training, against manual counts."""

import pytest

from llm_jax import objectives
from llm_jax.data import summary, tokenizers
from llm_jax.data.lazy import Mixture


def _line(config, docs, name, **keys):
    for key, value in keys.items():
        room, _, last = key.partition("__")
        config[room][last] = value
    config.objective.name = name
    examples = objectives.get(name).examples(tokenizers.Bytes(("[CLS]",)), config)
    return summary.line(examples, docs)


def test_labels_shares_and_what_a_row_cuts(config):
    docs = [{"text": "x" * n, "label": label} for n, label in
            [(3, "b"), (14, "a"), (15, "b"), (99, "b")]]  # fmt: skip
    found = _line(config, docs, "classification", data__labels=("a", "b"))
    assert found == ("4 documents; b: 3, a: 1; most frequent: b, 75.0%; 2 texts longer than "
                     "16 tokens: cut (the longest 101)")  # fmt: skip


def test_of_a_mixture_the_shares_are_told_too(config):
    parts = {"x": [{"text": "x", "label": "a"}] * 3, "y": [{"text": "y" * 99, "label": "b"}]}
    docs = Mixture(parts, config.data, 0)
    found = _line(config, docs, "classification", data__labels=("a", "b"))
    assert found == ("x 75.0%, y 25.0%; a: 3, b: 1; most frequent: a, 75.0%; 1 text longer "
                     "than 16 tokens: cut (the longest 101)")  # fmt: skip


def test_tags_are_counted_by_word(config):
    docs = [{"tokens": ["a", "b"], "tags": ["O", "X"]}, {"tokens": ["c"], "tags": ["O"]}]
    found = _line(config, docs, "tagging", data__labels=("O", "X"), model__kind="encoder")
    assert "O: 2, X: 1; most frequent: O, 66.7%" in found


def test_sources_and_targets_have_a_row_each(config):
    docs = [{"source": "x" * 15, "target": "x" * 15}, {"source": "x", "target": "x" * 16}]
    found = _line(config, docs, "seq2seq", model__kind="encoder_decoder", data__target_length=8)
    assert found == ("2 documents; 0 sources longer than 16 tokens (the longest 16); "
                     "2 targets longer than 8 tokens: cut (the longest 17)")


@pytest.mark.parametrize(("name", "counts", "found"), [
    ("contrastive", {"text": 6, "pair": 7}, "1 text longer than 8 tokens: cut (the longest 9)"),
    ("preference", {"prompt": 2, "chosen": 9, "rejected": 4},
     "1 pair longer than 16 tokens: left out (the longest 19)"),
    ("tagging", {"tokens": 15, "tags": 1}, "1 text longer than 16 tokens: over several rows"),
    ("chat", {"messages": 17}, "1 conversation, without template, longer than 16"),
    ("completion", {"source": 12, "target": 1}, "0 texts longer than 16 tokens (the longest 16)"),
])  # fmt: skip
def test_each_objective_says_what_becomes_of_what_is_too_long(config, name, counts, found):
    of = {"tokens": lambda n: ["x" * n], "tags": lambda n: ["x" * n],
          "messages": lambda n: [{"role": "user", "content": "x" * n}]}  # fmt: skip
    doc = {field: of.get(field, "x".__mul__)(n) for field, n in counts.items()}
    assert found in _line(config, [doc], name, model__kind="encoder")


@pytest.mark.parametrize("name", ["causal_lm"])
def test_what_is_cut_in_windows_is_counted_alone(config, name):
    assert _line(config, [{"text": "x" * 99}], name) == "1 document"

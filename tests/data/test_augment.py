"""Tests of word augmentation: rates, affected fields, training only."""

from collections import Counter

import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data import augment, tokenizers
from llm_jax.data.augment import augmented
from llm_jax.files import read_json
from tests import making

WORDS = [f"w{i}" for i in range(40)]


def changed(step, words=WORDS, seed=0):
    record = {"text": " ".join(words), "label": "a b"}
    new = augmented(record, ("text", "pair"), [step], np.random.default_rng(seed))
    assert new["label"] == "a b" and "pair" not in new
    return new["text"].split()


def test_deletion_keeps_order_and_always_a_word():
    kept = [changed("delete:0.2", seed=seed) for seed in range(200)]
    assert all(words == [w for w in WORDS if w in words] for words in kept)
    assert np.mean([len(words) for words in kept]) / 40 == pytest.approx(0.8, abs=0.02)
    assert len({tuple(words) for words in kept}) > 190
    assert {len(changed("delete:1", seed=seed)) for seed in range(9)} == {1}
    assert changed("delete:0") == WORDS and changed("delete:0.5", []) == []


def test_swaps_keep_all_words():
    found = [changed("swap:0.1", seed=seed) for seed in range(200)]
    assert all(Counter(words) == Counter(WORDS) for words in found)
    moved = np.mean([sum(a != b for a, b in zip(x, WORDS, strict=True)) for x in found])
    assert moved == pytest.approx(2 * 4, rel=0.15)  # four swaps of two, which seldom meet
    assert changed("swap:1", ["one"]) == ["one"]


def test_synonyms_are_those_of_the_file(tmp_path):
    (tmp_path / "same.txt").write_text("good fine nice\nbad poor\ngood kind\n")
    step, text = f"synonyms:{tmp_path}/same.txt:0.5", ["good", "bad", "film"] * 200
    found = changed(step, text)
    pairs = Counter(zip(text, found, strict=True))
    others = {"good": {"good", "fine", "nice", "kind"}, "bad": {"bad", "poor"}, "film": {"film"}}
    assert set(pairs) == {(a, b) for a in others for b in others[a]}
    assert pairs["good", "good"] == pytest.approx(100, abs=25)
    assert pairs["bad", "poor"] == pytest.approx(100, abs=25)
    (tmp_path / "none.txt").write_text("good\nbad\n")
    with pytest.raises(ConfigError, match="none.txt has no synonyms"):
        changed(f"synonyms:{tmp_path}/none.txt:0.5")


@pytest.mark.parametrize("step", ["delete", "swap:2", "synonyms:0.1", "shuffle:0.1", "delete:-1"])
def test_steps_that_are_none_are_refused(step):
    with pytest.raises(ConfigError, match="data.augment=.*must be like"):
        configs.load("configs/finetune/classify.py", [f"data.augment={step}"])


def test_training_sees_other_words_each_epoch_and_evaluation_those_of_the_file():
    """And what is seen is decided by the seed."""
    steps = "data.augment=('delete:0.3','swap:0.2')"
    c = configs.load("configs/finetune/classify.py", [steps, "data.batch_size=4"])
    c.data.labels = "0", "1"
    docs = [{"text": " ".join(WORDS[i:]), "label": "0"} for i in range(4)]
    tokenizer = tokenizers.Bytes()
    made = lambda: making.train_iterator(c, tokenizer, docs)
    epochs = [next(batches)["tokens"] for batches in [made()] for _ in range(3)]
    assert all(not np.array_equal(np.sort(a, 0), np.sort(b, 0))
               for a, b in zip(epochs, epochs[1:], strict=False))  # fmt: skip
    np.testing.assert_array_equal(next(made())["tokens"], epochs[0])
    (held,) = making.eval_batches(c, tokenizer, docs)
    c.data.augment = ()
    (plain,) = making.eval_batches(c, tokenizer, docs)
    np.testing.assert_array_equal(held["tokens"], plain["tokens"])


TEXTS = [
    "He said to her: the BOY's father is a man, she knew.", "John saw Mary. SHE waved; his son",
    "他说女儿和丈夫都好，其他人呢？", "吉他手和他们", "heather mother-in-law sonic", "",
]  # fmt: skip


def test_swapping_twice_changes_nothing_and_keeps_the_other_words():
    swapped = list(map(augment.counterfactual, TEXTS))
    assert list(map(augment.counterfactual, swapped)) == TEXTS
    assert swapped[0] == "She said to him: the GIRL's mother is a woman, he knew."
    assert swapped[2:4] == ["她说儿子和妻子都好，其他人呢？", "吉他手和她们"]
    for pair in [pair for lists in read_json(augment.WORDS).values() for pair in lists["swaps"]]:
        assert [augment.counterfactual(word) for word in pair] == pair[::-1]  # the audit's words
        assert [augment.side(f"({word})") for word in pair] == [0, 1]


def test_sides_of_texts():
    assert [augment.side(x) for x in TEXTS] == [-1, -1, -1, 0, 1, -1]


def test_a_document_is_swapped_whole_or_not_at_all():
    record = {"text": "he  and\nhis son", "pair": "the boy", "label": "he"}
    rng = np.random.default_rng(0)
    found = [augmented(record, ("text", "pair"), ["counterfactual:0.3"], rng) for _ in range(400)]
    other = {"text": "she  and\nhis daughter", "pair": "the girl", "label": "he"}
    assert all(x in (record, other) for x in found)
    assert np.mean([x == other for x in found]) == pytest.approx(0.3, abs=0.07)

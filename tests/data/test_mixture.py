"""Tests of mixtures: rates as in the T5 paper, coverage of all documents, resuming."""

import json
from collections import Counter

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.data import chunks, files, sources, tokenizers
from llm_jax.data.lazy import Mixture, rates
from tests import making

SIZES = {"a": 40, "b": 13, "c": 1}


@pytest.fixture
def mixed(config, tmp_path):
    """Three files, each document of which says where it is from."""
    for name, size in SIZES.items():
        lines = (json.dumps({"text": f"{name}{i:02}" * 3}) for i in range(size))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    config.data.train = ",".join(f"{tmp_path}/{name}.jsonl" for name in SIZES)
    config.data.validation_fraction = 0.0
    return config


def _rates(config, sizes, **keys):
    config.data.update(keys)
    return rates(config.data, sizes).tolist()


def test_rates_are_the_papers(config):
    """Raffel 2020, 3.5.2: r = min(e, K) / sum of them; r^(1/T), renormalised."""
    sizes = [400_000, 3_000, 100]
    assert _rates(config, sizes) == pytest.approx(np.array(sizes) / sum(sizes))
    limited = _rates(config, sizes, mixture_limit=2**10)
    assert limited == pytest.approx(np.array([1024, 1024, 100]) / 2148)
    both = _rates(config, sizes, mixture_temperature=2.0)
    assert both == pytest.approx(np.sqrt([1024, 1024, 100]) / np.sqrt([1024, 1024, 100]).sum())
    equal = _rates(config, sizes, mixture_temperature=1e6, mixture_limit=0)
    assert equal == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert _rates(config, sizes, weights=(6, 3, 1)) == pytest.approx([0.6, 0.3, 0.1])
    with pytest.raises(ConfigError, match="data.weights=.*: has 2 weights for 3 sources"):
        _rates(config, sizes, weights=(1, 2))


@pytest.mark.parametrize("keys", [{"weights": (1, 2, 1)}, {"mixture_temperature": 3.0},
                                  {"mixture_limit": 5}, {"weights": (1e-3, 1, 1e-3)}])  # fmt: skip
def test_shares_hold_and_each_source_is_gone_through_in_turn(mixed, keys):
    mixed.data.update(keys)
    docs = making.splits(mixed)["train"]
    assert isinstance(docs, Mixture) and len(docs) >= sum(SIZES.values())
    assert len(list(docs)) == sum(SIZES.values())  # every one, for labels
    epochs = -(-2000 // len(docs))
    found = [doc["text"] for doc in docs.read(range(epochs * len(docs)))]
    by = Counter(text[0] for text in found)
    for name, share in zip(SIZES, docs.shares.values(), strict=True):
        assert abs(by[name] / epochs / len(docs) - share) <= 1.01 / len(docs)  # rounded
        assert by[name] >= 10 * epochs
        times = Counter(text for text in found if text[0] == name)
        if by[name] >= SIZES[name]:
            assert len(times) == SIZES[name] and max(times.values()) - min(times.values()) <= 1
    turns = [[t for t in found if t[0] == "b"][i * 13 : (i + 1) * 13] for i in range(2)]
    if len(turns[1]) == 13:
        assert set(turns[0]) == set(turns[1]) and turns[0] != turns[1]


@pytest.mark.parametrize("size", [16, 256, 2**20])
def test_resumes_bit_for_bit(mixed, monkeypatch, size):
    monkeypatch.setattr(chunks, "CHUNK", size)
    mixed.data.weights = (1.0, 3.0, 1.0)
    docs = making.splits(mixed)["train"]
    iterator = making.train_iterator(mixed, tokenizers.Bytes(), docs)
    states, batches = [], []
    for _ in range(30):  # several epochs
        states.append(json.loads(json.dumps(iterator.get_state())))
        batches.append(next(iterator))
    for i in (0, 7, 19):
        again = making.train_iterator(mixed, tokenizers.Bytes(), making.splits(mixed)["train"])
        again.set_state(states[i])
        for expected in batches[i:]:
            got = next(again)
            assert all(np.array_equal(got[name], expected[name]) for name in expected)
    seen = np.concatenate([batch["tokens"].ravel() for batch in batches])
    share = (seen == ord("b")).sum() / np.isin(seen, [*b"abc"]).sum()
    assert abs(share - 0.6) < 0.08


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("length", [5, 40])
def test_what_was_drawn_is_counted_over_resumptions(mixed, monkeypatch, shards, length):
    """By brute force: a document's first letter follows the token that begins it."""
    monkeypatch.setattr(chunks, "CHUNK", 200)
    mixed.data.update({"weights": (1.0, 3.0, 1.0), "shards": shards, "batch_size": 4})
    mixed.model.max_length = length
    docs, tokenizer = making.splits(mixed)["train"], tokenizers.Bytes()
    iterator, seen, whole = making.train_iterator(mixed, tokenizer, docs), [], []
    for step in range(14):
        if step % 7 == 5:  # another process goes on
            state = json.loads(json.dumps(iterator.get_state()))
            iterator = making.train_iterator(mixed, tokenizer, making.splits(mixed)["train"])
            iterator.set_state(state)
        batch = next(iterator)
        held = batch["segment_ids"] > 0
        seen.append(np.stack([batch["tokens"][held], batch["targets"][held]]))
        tokens, targets = np.concatenate(seen, axis=1)
        first = targets[tokens == tokenizer.bos_id]
        drawn = docs.drawn(iterator.get_state())
        shares = {name[-7]: share for name, share in drawn.items() if name.startswith("documents/")}
        assert shares == {x: pytest.approx((first == ord(x)).sum() / max(1, len(first)))
                          for x in "abc"}  # fmt: skip
        whole.append(drawn)
    # A third of the tokens of a text are its source's letter.
    letters = {x: (tokens == ord(x)).sum() / np.isin(tokens, [*b"abc"]).sum() for x in "abc"}
    for name, share in drawn.items():
        assert name.startswith("documents/") or abs(share - letters[name[-7]]) < 0.03
    # An older checkpoint has no counts.
    assert set(docs.drawn({"streams": {"0": {"chunk": 3, "row": 1}}}).values()) == {0.0}
    straight = making.train_iterator(mixed, tokenizer, docs)
    for expected in whole:
        next(straight)
        assert docs.drawn(straight.get_state()) == expected


def test_a_share_of_each_source_is_held_out(mixed, tmp_path):
    mixed.data.weights, mixed.data.validation_fraction = (1, 1, 1), 0.25
    (tmp_path / "c.jsonl").write_text('{"text": "c"}\n{"text": "a00a00a00"}')
    split = making.splits(mixed)
    train, held = ({doc["text"] for doc in split[name]} for name in ("train", "validation"))
    assert not train & held
    by = Counter(text[0] for text in held)
    assert by["a"] in (10, 11) and by["b"] == 3


def test_large_sets_are_mixed_as_they_are_read(mixed):
    sets = sources.sources(mixed.data.train, mixed.data)
    lazy = {name: sources.Lazy(part, {"text": "text"}) for name, part in sets.items()}
    whole, read = (Mixture(parts, mixed.data, 3) for parts in (sets, lazy))
    assert whole.read(range(200)) == read.read(range(200))
    assert [read[i] for i in range(54)] == read.read(range(54))
    with pytest.raises(IndexError):
        read[len(read)]


def test_what_cannot_be_mixed_is_named(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    mixed.data.train, mixed.data.weights = "a.jsonl,empty.jsonl", (1, 1)
    with pytest.raises(ConfigError, match="empty.jsonl. is empty"):
        making.splits(mixed)


def test_without_keys_documents_are_as_they_are(mixed, monkeypatch):
    docs = making.splits(mixed)["train"]
    assert isinstance(docs, list) and len(docs) == sum(SIZES.values())
    monkeypatch.setattr(files, "IN_MEMORY_BYTES", 10)
    with pytest.raises(ConfigError, match="unpacks to more"):
        making.splits(mixed)

"""Tests of batches of several lengths: only padding is removed, for any number of processes."""

import jax
import numpy as np
import pytest

from llm_jax import config as configs
from llm_jax import models, objectives
from llm_jax.data import lengths, tokenizers
from llm_jax.train.state import loss
from tests import making

TOKENIZER = tokenizers.Bytes()
KINDS = {
    "classification": {"model.kind": "encoder", "model.head": "sequence", "model.num_labels": 2,
                       "data.labels": ("a", "b")},
    "seq2seq": {"model.kind": "encoder_decoder", "data.target_length": 70},
    "causal_lm": {},
}  # fmt: skip


def _config(name, **changes):
    c = configs.base()
    c.update_from_flattened_dict({
        "objective.name": name, "data.packing": "none", "model.max_length": 100,
        "model.vocab_size": TOKENIZER.vocab_size, "data.batch_size": 8, "model.num_layers": 1,
        "model.embed_dim": 8, "model.num_heads": 2, **KINDS[name], **changes,
    })  # fmt: skip
    return c


def _documents(name, n=203, most=60):
    rng = np.random.default_rng(0)
    text = lambda: "".join(map(chr, rng.integers(97, 123, rng.integers(1, most))))
    field = {"seq2seq": lambda: (text(), text()), "causal_lm": text}
    return [field.get(name, lambda: {"text": text(), "label": "a"})() for _ in range(n)]


def _tokens(batches):
    """The tokens of each row's sides, in an order of their own."""
    sides = lambda batch: [name for name in ("tokens", "encoder_tokens") if name in batch]
    masks = {name: name.replace("tokens", "segment_ids") for name in ("tokens", "encoder_tokens")}
    return sorted(
        b"|".join(batch[name][i][batch[masks[name]][i] > 0].tobytes() for name in sides(batch))
        for batch in batches for i in range(len(batch["tokens"])) if batch["segment_ids"][i].any()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("longest", "kept"), {1: 16, 16: 16, 17: 24, 24: 24, 25: 32, 32: 32, 33: 40, 40: 40}.items()
)
def test_rows_keep_all_tokens_of_the_longest(longest, kept):
    """And few lengths there are: 16, 24, 32, 48, 64 …, up to that of a row."""
    place = np.arange(40)
    rows = [{"tokens": place, "segment_ids": (place < n) * 1, "label": n} for n in (longest, 1)]
    first, second = lengths.trimmed(rows)
    assert first["segment_ids"].sum() == longest and second["segment_ids"].sum() == 1
    assert (first["label"], second["label"]) == (longest, 1)
    assert len(first["tokens"]) == len(second["segment_ids"]) == kept
    assert len(rows[0]["tokens"]) == 40


@pytest.mark.parametrize("name", KINDS)
def test_an_epoch_has_every_row_and_little_padding(name, monkeypatch):
    config, docs = _config(name), _documents(name)
    config.data.batch_size = 7  # 29 batches of the 203
    take = lambda: [next(iterator) for _ in range(29)]
    iterator = making.train_iterator(config, TOKENIZER, docs)
    batches = take()
    again = take()
    validation = list(making.eval_batches(config, TOKENIZER, docs))
    assert _tokens(batches) == _tokens(again) == _tokens(validation)
    assert any(not np.array_equal(a["tokens"], b["tokens"])
               for a, b in zip(batches, again, strict=True))  # fmt: skip
    assert {b["tokens"].shape[1] for b in batches} <= {16, 24, 32, 48, 64}
    share = lambda batches: (
        sum((b["segment_ids"] > 0).sum() for b in batches) / sum(b["tokens"].size for b in batches)
    )
    sorted_share, in_order = share(batches), share(validation)
    monkeypatch.setattr(lengths, "vary", lambda config: False)
    iterator = making.train_iterator(config, TOKENIZER, docs)
    whole = take()
    assert {b["tokens"].shape[1] for b in whole} == {70 if name == "seq2seq" else 100}
    assert _tokens(whole) == _tokens(batches)
    assert sorted_share > 1.2 * in_order > 1.2 * share(whole)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x == "seq2seq" else x for x in KINDS]
)
def test_padding_that_is_left_out_changes_no_loss(name, monkeypatch):
    config, docs = _config(name), _documents(name, 8, 28)
    short = next(iter(making.eval_batches(config, TOKENIZER, docs)))
    monkeypatch.setattr(lengths, "vary", lambda config: False)
    whole = next(iter(making.eval_batches(config, TOKENIZER, docs)))
    assert short["tokens"].shape[1] in (24, 32)
    assert whole["tokens"].shape[1] > 32
    model = models.build(configs.resolve(config.model, 0))
    params, key = models.init_params(model, jax.random.key(0)), jax.random.key(1)
    objective = objectives.get(name)
    values = [loss(model, objective, config, params, batch, key)[0] for batch in (short, whole)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-5)


@pytest.mark.parametrize("shards", [1, 2])
def test_shapes_do_not_depend_on_who_reads(shards):
    """Of several streams a process may know only its own: rows are then of full length."""
    config, docs = _config("classification", **{"data.shards": shards}), _documents("")
    parts = [lambda n, i=i: np.arange(i * n // 2, (i + 1) * n // 2) for i in range(2)]
    start = lambda rows: making.train_iterator(config, TOKENIZER, docs, rows)
    whole, halves = start(slice), [start(rows) for rows in parts]
    for _ in range(30):
        batch, both = next(whole), [next(half) for half in halves]
        for name in batch:
            assert np.array_equal(np.concatenate([half[name] for half in both]), batch[name])
        assert shards == 1 or batch["tokens"].shape[1] == 100


@pytest.mark.parametrize("first", [0, 3])
def test_batches_are_alike_and_come_in_any_order(first):
    rng = np.random.default_rng(0)
    sizes, order = rng.integers(1, 1000, 643), rng.permutation(643).tolist()
    found = lengths.alike(order, sizes, 8, first, rng)
    assert sorted(found) == sorted(order) and found[:first] == order[:first]
    window = lengths.WINDOW * 8
    for start in range(first, 643, window):
        assert sorted(found[start : start + window]) == sorted(order[start : start + window])
    whole = sizes[found[first : first + 8 * ((643 - first) // 8)]].reshape(-1, 8)
    assert np.median(np.ptp(whole, axis=1)) < 100
    means = whole.mean(1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.4  # sorted up and down: 0.9


def test_batches_stay_alike_in_later_epochs():
    """Of 203 documents the batches of 8 begin at another place in each epoch."""
    config, docs = _config("classification"), _documents("")
    iterator = making.train_iterator(config, TOKENIZER, docs)
    batches = [next(iterator) for _ in range(100)]
    share = lambda some: (
        sum((b["segment_ids"] > 0).sum() for b in some) / sum(b["tokens"].size for b in some)
    )
    assert min(share(batches[i : i + 25]) for i in (25, 50, 75)) > 0.95 * share(batches[:25])

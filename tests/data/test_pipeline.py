import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.data import chunks, tokenizers
from tests import making

TOKENIZER = tokenizers.Bytes()
FIELDS = {"tokens", "targets", "weights", "segment_ids", "positions"}


def _documents(seed=0, n=40, longest=70):
    """Texts that no window of two of them could be confused in: each of its own letters."""
    rng = np.random.default_rng(seed)
    return ["".join(map(chr, rng.integers(33, 127, rng.integers(1, longest)))) for _ in range(n)]


def _take(iterator, n):
    return [next(iterator) for _ in range(n)]


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _segments(batch):
    """Yields (tokens, targets, positions) of every segment of every row."""
    for row in range(len(batch["tokens"])):
        ids = batch["segment_ids"][row]
        for segment in range(1, ids.max() + 1):
            where = ids == segment
            yield [batch[name][row][where] for name in ("tokens", "targets", "positions")]


def _check(batch, rows, length):
    assert batch.keys() == FIELDS
    for name, values in batch.items():
        assert values.shape == (rows, length)
        assert values.dtype == (np.float32 if name == "weights" else np.int32)
    padding = batch["segment_ids"] == 0
    assert np.array_equal(batch["weights"] == 0, padding)
    assert (batch["tokens"][padding] == TOKENIZER.pad_id).all()
    for tokens, targets, positions in _segments(batch):
        assert np.array_equal(tokens[1:], targets[:-1])
        assert np.array_equal(positions, np.arange(len(tokens)))


def _predicted(batches):
    """How often each (token, target) is asked for."""
    pairs = Counter()
    for batch in batches:
        for tokens, targets, _ in _segments(batch):
            pairs.update(zip(tokens.tolist(), targets.tolist(), strict=True))
    return pairs


def _expected(docs):
    pairs = Counter()
    for doc in docs:
        s = making.stream(TOKENIZER, doc).tolist()
        pairs.update(zip(s, s[1:], strict=False))
    return pairs


def _halves():
    """The rows of each of two processes."""
    return [lambda n, i=i: np.arange(i * n // 2, (i + 1) * n // 2) for i in range(2)]


@pytest.mark.parametrize("packing", ["first_fit", "none"])
def test_train_batches_are_well_formed(config, packing):
    config.data.packing = packing
    docs = _documents()
    streams = [making.stream(TOKENIZER, doc).tobytes() for doc in docs]
    for batch in _take(making.train_iterator(config, TOKENIZER, docs), 30):
        _check(batch, rows=4, length=16)
        if packing == "none":
            assert batch["segment_ids"].max() == 1
        for tokens, targets, _ in _segments(batch):  # each from within one document
            piece = np.append(tokens, targets[-1]).tobytes()
            assert any(piece in stream for stream in streams)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("length", [2, 3, 16, 17, 18, 33, 50])
def test_cuts_cover_a_document(length, overlap):
    tokens = np.arange(length)
    firsts = set()
    for seed in [None, *range(40)]:
        rng = None if seed is None else np.random.default_rng(seed)
        pieces = chunks.cut(tokens, 16, overlap, rng)
        new = np.concatenate([piece[overlap:] for piece in pieces])
        assert new.tolist() == list(range(overlap, length))
        assert all(overlap < len(piece) <= 16 + overlap for piece in pieces)
        firsts.add(len(pieces[0]) - overlap)
    long = length - overlap > 16
    assert len(pieces[0]) == min(length, 16 + overlap) if seed is None else True
    assert len(firsts) > 10 if long else len(firsts) == 1  # a phase of its own for each draw


def test_elsewhere_is_any_place_outside_the_document():
    """Every token of other documents is as likely the start; few come only from short ones."""
    lengths = [5, 20, 3, 40]
    pool = chunks.Pool([np.full(n, i) + 100 * np.arange(n) for i, n in enumerate(lengths)])
    rng = np.random.default_rng(0)
    for own in range(4):
        places = Counter()
        for _ in range(4000):
            drawn = pool.elsewhere(own, 4, rng)
            other = drawn[0] % 100
            assert (drawn % 100 == other).all() and len(drawn) == min(4, lengths[other])
            assert (np.diff(drawn) == 100).all()
            places[int(other)] += 1
        outside = sum(lengths) - lengths[own]
        for other, n in enumerate(lengths):
            p = n / outside if other != own else 0
            assert abs(places[other] - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p))
        starts = {int(pool.elsewhere(own, 1, rng)[0]) for _ in range(3000)}
        assert len(starts) == outside  # of one token: each is drawn
    alone = chunks.Pool([np.arange(9)])
    assert {int(alone.elsewhere(0, 1, rng)[0]) for _ in range(300)} == set(range(9))


@pytest.mark.parametrize("ramp", [0, 3])
def test_processes_hold_the_rows_of_one_stream(config, ramp):
    """Batches and states are those of one process, so that any number of them can resume."""
    config.data.ramp_steps, config.data.ramp_start = ramp, 2
    docs = _documents()
    start = lambda rows: making.train_iterator(config, TOKENIZER, docs, rows)
    whole, halves = start(slice), [start(rows) for rows in _halves()]
    for _ in range(5):
        state, batch = json.dumps(whole.get_state()), next(whole)
        assert [json.dumps(half.get_state()) for half in halves] == [state, state]
        parts = [next(half) for half in halves]
        assert _same({k: np.concatenate([p[k] for p in parts]) for k in batch}, batch)
    two = [half.get_state() for half in halves][1]
    resumed = start(slice)
    resumed.set_state(two)
    assert _same(next(resumed), next(whole))


@pytest.mark.parametrize("packing", ["first_fit", "none"])
def test_restored_iterator_continues_bitwise(config, packing):
    config.data.packing = packing
    docs = _documents()
    iterator = making.train_iterator(config, TOKENIZER, docs)
    states, batches = [], []
    for _ in range(40):  # several epochs
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    for i in range(0, 40, 3):
        again = making.train_iterator(config, TOKENIZER, docs)
        again.set_state(json.loads(states[i]))
        assert all(map(_same, _take(again, 3), batches[i : i + 3]))
        iterator.set_state(json.loads(states[i]))  # also one that had run ahead
        assert _same(next(iterator), batches[i])


def test_seed_decides_and_epochs_differ(config):
    docs = _documents()
    first = _take(making.train_iterator(config, TOKENIZER, docs), 40)
    assert all(map(_same, first, _take(making.train_iterator(config, TOKENIZER, docs), 40)))
    config.seed = 1
    assert not any(map(_same, first, _take(making.train_iterator(config, TOKENIZER, docs), 40)))
    assert len({batch["tokens"].tobytes() for batch in first}) == 40


def test_one_long_document_is_well_mixed(config):
    """A batch of a single long document must not be consecutive text."""
    text = "".join(f"{i:05}" for i in range(8000))
    config.data.batch_size = 32
    rows = next(making.train_iterator(config, TOKENIZER, [text]))["tokens"]
    found = [text.find(TOKENIZER.decode(row)) / len(text) for row in rows]
    assert np.std(found) > 0.2  # uniform: 0.29
    assert min(np.diff(sorted(found))) > 0


@pytest.mark.parametrize("shares", [[slice], _halves()], ids=["whole", "halves"])
@pytest.mark.parametrize("packing", ["first_fit", "none"])
def test_eval_covers_everything_once(config, packing, shares):
    config.data.packing = packing
    docs = _documents(n=11)
    shares = [making.eval_batches(config, TOKENIZER, docs, rows) for rows in shares]
    runs = [list(share) for share in shares]
    assert len({len(run) for run in runs}) == 1
    for run, share in zip(runs, shares, strict=True):
        assert all(map(_same, run, list(share)))  # again from the start
        for batch in run:
            _check(batch, rows=4 // len(shares), length=16)
    assert _predicted(batch for run in runs for batch in run) == _expected(docs)


@pytest.mark.parametrize(
    ("change", "docs", "message"),
    [
        ({"model.vocab_size": 258}, ["text" * 9], "model.vocab_size=258: .* 259"),
        ({"objective.name": "dance"}, ["text" * 9], "objective.name='dance': allowed are"),
        ({}, ["short"], "data.train: 7 tokens do not fill one row"),
        ({}, [], "data.train: has no documents"),
    ],
)
def test_bad_runs_are_refused(config, change, docs, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        making.train_iterator(config, TOKENIZER, docs)


def test_empty_validation_is_refused(config):
    with pytest.raises(ConfigError, match="data.validation"):
        making.eval_batches(config, TOKENIZER, [])


def test_a_live_iterator_does_not_disturb_the_exit():
    script = """
from llm_jax import objectives
from llm_jax.config import base
from llm_jax.data import pipeline, tokenizers
examples = objectives.get("causal_lm").examples(tokenizers.Bytes(), base())
iterator = pipeline.train_iterator(examples, [{"text": "some text"}] * 1000)
next(iterator)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.data
def test_shakespeare_as_nanogpt_reads_it(config, shared_data):
    config.data.train = str(shared_data / "tiny_shakespeare" / "input.txt")
    config.data.validation_fraction = 0.1
    config.tokenizer.name, config.model.max_length, config.data.batch_size = "chars", 64, 12
    split = making.splits(config)
    lengths = [len(split[name][0]["text"]) for name in ("train", "validation")]
    assert lengths == [1_003_854, 111_540]
    tokenizer = making.build_tokenizer(config, split["train"])
    assert tokenizer.vocab_size == 65 + 4
    batch = next(making.train_iterator(config, tokenizer, split["train"]))
    assert batch["weights"].mean() > 0.98
    batches = making.eval_batches(config, tokenizer, split["validation"])
    assert sum(batch["weights"].sum() for batch in batches) == 111_541

import re
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from llm_jax.data import chunks, lazy, sources, tokenizers
from tests import making

TOKENIZER = tokenizers.Bytes()


def _set(count=40, longest=70):
    rng = np.random.default_rng(0)
    draw = lambda: "".join(map(chr, rng.integers(33, 127, rng.integers(1, longest))))
    return [draw() for _ in range(count)]


def _lazy(docs):
    return lazy.Lazy([{"text": doc} for doc in docs], {"text": "text"}, mean=35)


def _pairs(batches):
    """How often each (token, target) is asked for, within the segments of the rows."""
    found = Counter()
    for batch in batches:
        real = batch["segment_ids"] > 0
        found.update(
            zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist(), strict=True)
        )
    return found


def _expected(docs):
    found = Counter()
    for doc in docs:
        s = making.stream(TOKENIZER, doc).tolist()
        found.update(zip(s, s[1:], strict=False))
    return found


@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_each_goes_where_it_first_fits(fields, seed):
    rng = np.random.default_rng(seed)
    room = [16, 9][:fields]
    needs = np.stack([rng.integers(1, n + 1, 50) for n in room], axis=1)
    free, expected = [], []
    for i, need in enumerate(needs):
        fits = [r for r, left in enumerate(free) if (left >= need).all()]
        if not fits:
            free.append(np.array(room))
            expected.append([])
        row = fits[0] if fits else len(free) - 1
        free[row] = free[row] - need
        expected[row].append(i)
    assert chunks.first_fit(needs, room) == expected
    twice = np.concatenate([needs, needs], axis=1)  # as long as another: decides nothing
    assert chunks.first_fit(twice, room * 2) == expected
    assert chunks.first_fit(needs, room, most=1) == [[i] for i in range(50)]
    with pytest.raises(ValueError, match="does not fit"):
        chunks.first_fit(needs + 16, room)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_permutation_has_every_place_once(count):
    orders = [[lazy.permuted(i, count, seed) for i in range(count)] for seed in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 7 or len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("packing", ["first_fit", "none"])
@pytest.mark.parametrize("size", [100, 400, 10**6])
@pytest.mark.parametrize("held", [_lazy, making.records], ids=["read", "in memory"])
def test_an_epoch_predicts_every_token_once(config, packing, size, held, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", size)
    config.data.packing = packing
    docs = _set()
    expected = _expected(docs)
    assert _pairs(making.eval_batches(config, TOKENIZER, held(docs))) == expected
    made = chunks.Chunks(making.examples(config, TOKENIZER), held(docs), seed=3)
    orders = []
    for epoch in range(3):
        numbers = range(epoch * len(made), (epoch + 1) * len(made))
        rows = [row for number in numbers for row in made.rows(number)]
        assert _pairs(rows) == expected
        orders.append(b"".join(row["tokens"].tobytes() for row in rows))
    assert len(set(orders)) == 3


def test_rows_hold_whole_examples(config):
    docs = _set()
    streams = [making.stream(TOKENIZER, doc).tobytes() for doc in docs]
    for batch, _ in zip(
        making.train_iterator(config, TOKENIZER, _lazy(docs)), range(30), strict=False
    ):
        assert batch["tokens"].shape == (4, 16)
        for row in range(4):
            ids, tokens = batch["segment_ids"][row], batch["tokens"][row]
            assert (tokens[ids == 0] == TOKENIZER.pad_id).all()
            assert np.array_equal(batch["weights"][row], ids > 0)
            for segment in range(1, ids.max() + 1):
                where = ids == segment
                piece = np.append(tokens[where], batch["targets"][row][where][-1])
                assert any(piece.tobytes() in stream for stream in streams)
                assert np.array_equal(batch["positions"][row][where], np.arange(where.sum()))


SEEDS = range(12)


def _order(config, docs, seed, number, held):
    """Which documents the rows of a chunk are, in their order; each document is one row."""
    config.data.packing = "none"
    made = chunks.Chunks(making.examples(config, TOKENIZER), held(docs), seed)
    texts = [TOKENIZER.decode(row["tokens"][1:]) for row in made.rows(number)]
    return tuple(docs.index(text) for text in texts), len(made)


@pytest.mark.parametrize("held", [_lazy, making.records], ids=["read", "in memory"])
def test_seed_and_epoch_decide_which_documents_meet(config, held, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 350)
    docs = [f"document {i:02}" for i in range(90)]
    _, count = _order(config, docs, 0, 0, held)
    assert count > 2
    for numbers in ([0] * 12, [count * epoch for epoch in range(12)]):  # of seeds, of epochs
        seeds = SEEDS if not any(numbers) else [3] * 12
        orders = [_order(config, docs, *x, held)[0] for x in zip(seeds, numbers, strict=True)]
        # Which documents: of 90 choose as many, no two draws are alike; half are from either end.
        assert len({frozenset(order) for order in orders}) == 12
        first = np.concatenate(orders)
        assert abs((first < 45).mean() - 0.5) < 0.15
        # In which order: no more ascents than descents, as many as in a random permutation.
        ascents = np.concatenate([np.diff(order) > 0 for order in orders])
        assert abs(ascents.mean() - 0.5) < 0.15
    whole = [_order(config, docs, 3, number, held)[0] for number in range(count)]
    assert sorted(sum(whole, ())) == list(range(90))
    alone = [_order(config, docs, None, number, held)[0] for number in range(count)]
    assert sum(alone, ()) == tuple(range(90))


@pytest.mark.parametrize("held", [_lazy, making.records], ids=["read", "in memory"])
def test_seed_and_epoch_decide_cuts_and_masks(config, held):
    text = "".join(chr(33 + i) for i in range(80))
    starts = lambda rows: frozenset(int(row["tokens"][0]) for row in rows)
    what = making.examples(config, TOKENIZER)
    of_seeds = {starts(chunks.Chunks(what, held([text]), seed).rows(0)) for seed in SEEDS}
    one = chunks.Chunks(what, held([text]), 0)
    of_epochs = {starts(one.rows(epoch)) for epoch in SEEDS}
    assert len(of_seeds) > 6 and len(of_epochs) > 6  # of 16 phases
    config.objective.name, config.model.kind, config.model.head = "masked_lm", "encoder", "mlm"
    tokenizer = making.build_tokenizer(config, [text])
    what = making.examples(config, tokenizer)
    masks = lambda rows: b"".join(row["masked_positions"].tobytes() for row in rows)
    of_seeds = {masks(chunks.Chunks(what, held(["short"] * 4), seed).rows(0)) for seed in SEEDS}
    one = chunks.Chunks(what, held(["short"] * 4), 0)
    of_epochs = {masks(one.rows(epoch)) for epoch in SEEDS}
    assert len(of_seeds) > 6 and len(of_epochs) > 6


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_no_chunk_is_one_document_alone(config, count, monkeypatch):
    """What a pair's second half is drawn from is another document."""
    monkeypatch.setattr(chunks, "CHUNK", 1)
    docs = [f"document {i:02}" for i in range(count)]
    order = lambda number: _order(config, docs, 0, number, making.records)
    parts = [order(number)[0] for number in range(order(0)[1])]
    assert min(map(len, parts)) >= min(count, 2) and sorted(sum(parts, ())) == [*range(count)]


def test_rows_come_in_no_order_of_how_full_they_are(config):
    """First fit leaves the emptiest row to the end; training meets it anywhere."""
    what, places = making.examples(config, TOKENIZER), []
    for seed in range(40):
        rows = chunks.Chunks(what, making.records(_set()), seed).rows(0)
        fill = [(row["segment_ids"] > 0).sum() for row in rows]
        places.append(np.argmin(fill) / (len(fill) - 1))
    assert abs(np.mean(places) - 0.5) < 0.15 and np.std(places) > 0.2  # uniform: 0.5 and 0.29


def test_a_run_of_other_seed_reads_in_other_order(config):
    docs = [f"document {i:02}" for i in range(90)]
    config.data.packing = "none"
    first = []
    for config.seed in SEEDS:
        iterator = making.train_iterator(config, TOKENIZER, docs)
        first.append(next(iterator)["tokens"].tobytes())
        iterator.close()
    assert len(set(first)) == len(SEEDS)


def _take(config, workers, state=None, count=6):
    config.data.workers = workers
    iterator = making.train_iterator(config, TOKENIZER, _lazy(_set()))
    if state is not None:
        iterator.set_state(state)
    found = [(next(iterator), iterator.get_state()) for _ in range(count)]
    iterator.close()
    return found


def test_workers_make_what_one_process_makes(config, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 350)
    config.data.batch_size = 8
    alone, shared = _take(config, 0), _take(config, 2)
    resumed = _take(config, 2, alone[2][1], count=3)
    for i, (batch, state) in enumerate(alone):
        for other, there in [shared[i], *resumed[i - 3 : i - 2] * (i > 2)]:
            assert there == state
            assert all(np.array_equal(other[name], batch[name]) for name in batch)


class _Endless:
    """A hundred million records, made when they are asked for."""

    def __len__(self):
        return 100_000_000

    def __getitem__(self, i):
        return {"text": f"Document {i} of very many. " * 100}


def test_a_hundred_million_documents_start_at_once(config, monkeypatch):
    """Nothing is held, or done, for every document: neither to shuffle nor to split the set."""
    monkeypatch.setattr(chunks, "CHUNK", 2**17)
    config.model.max_length, config.data.validation_fraction = 256, 0.001
    tracemalloc.start()
    began = time.thread_time()
    docs = lazy.Lazy(_Endless(), {"text": "text"}, mean=2900)
    train, validation, _ = sources._hold_out(docs, [0.001, 0.0])
    iterator = making.train_iterator(config, TOKENIZER, train)
    started = time.thread_time() - began
    batches = [next(iterator)["tokens"] for _ in range(8)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    iterator.close()
    assert (len(train), len(validation)) == (99_900_000, 100_000)
    assert started < 1
    assert peak < 400e6  # a list of indices alone would be 800 MB
    read = [re.search(rb"Document (\d+) of", row.astype(np.uint8)) for b in batches for row in b]
    numbers = [int(found[1]) for found in read if found]
    assert len(numbers) > 20 and np.std(numbers) > 2e7  # uniform over the set: 2.9e7

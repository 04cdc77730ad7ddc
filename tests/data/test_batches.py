"""Tests of batch size ramps, batches shared by several processes, and resuming."""

import numpy as np
import pytest

from llm_jax import config
from llm_jax.config import ConfigError
from llm_jax.data import batches, chunks, lazy, lengths
from llm_jax.data.examples import Part
from tests import making


def settings(**data):
    c = config.base()
    c.tokenizer.name = "bytes"
    c.model.max_length = 16
    c.data.update({"batch_size": 16, "ramp_start": 4, "ramp_steps": 8} | data)
    config.check(c)
    return c


def test_grows_in_stages_and_resumes():
    c = settings()
    docs = [f"hello world, this is document {i}; " * 5 for i in range(60)]
    tokenizer = making.build_tokenizer(c, docs)
    whole, states = making.train_iterator(c, tokenizer, docs), []
    found = []
    for _ in range(11):
        found.append(next(whole))
        states.append(whole.get_state())
    sizes = [len(b["tokens"]) for b in found]
    assert sizes == [4, 4, 4, 8, 8, 8, 12, 12, 16, 16, 16]
    for stopped in (0, 4, 9):
        again = making.train_iterator(c, tokenizer, docs)
        again.set_state(states[stopped])
        for expected in found[stopped + 1 :]:
            np.testing.assert_equal(next(again), expected)


@pytest.mark.parametrize(
    ("size", "start", "steps"), [(16, 4, 8), (1024, 4, 800), (96, 8, 7), (48, 16, 1), (8, 8, 5)]
)
def test_a_ramp_is_a_line_in_few_stages(size, start, steps):
    """Each size is a program of its own, however many multiples of the first there are."""
    data = settings(batch_size=size, ramp_start=start, ramp_steps=steps).data
    sizes = np.array([batches.batch_size(data, step) for step in range(steps + 1)])
    assert sizes[0] == start and sizes[-1] == size and (np.diff(sizes) >= 0).all()
    assert len({*sizes}) <= 1 + batches.STAGES and (sizes % start == 0).all()
    below = start + (size - start) * np.arange(steps + 1) / steps - sizes
    assert (below >= 0).all() and (below < (size - start) / batches.STAGES + start).all()


def test_start_must_divide():
    with pytest.raises(ConfigError, match=r"data\.ramp_start=5.*data\.batch_size=16"):
        c = settings()
        c.data.ramp_start = 5
        config.check(c)


class Documents:
    """Records that note who has been read."""

    def __init__(self, count):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.read.append(i)
        return {"text": f"{i:04} " * (i % 7 + 1)}


@pytest.fixture
def start(monkeypatch):
    """Returns (config, processes) -> iterators of so many, each with its part of the rows."""
    monkeypatch.setattr(chunks, "CHUNK", 150)

    def make(c, processes, documents=120):
        tokenizer = making.build_tokenizer(c, [])
        records = [Documents(documents) for _ in range(processes)]
        found = []
        for i, read in enumerate(records):
            docs = lazy.Lazy(read, {"text": "text"}, mean=20)
            rows = lambda n, i=i: np.arange(i * n // processes, (i + 1) * n // processes)
            found.append(making.train_iterator(c, tokenizer, docs, rows))
        return found, records

    return make


def joined(iterators):
    parts = [next(iterator) for iterator in iterators]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("ramp", [0, 8])
@pytest.mark.parametrize("shards", [1, 4])
def test_any_number_of_processes_makes_the_same_batches(start, ramp, shards):
    c = settings(shards=shards, ramp_steps=ramp)
    (alone,), _ = start(c, 1)
    expected, states = [], []
    for _ in range(12):
        expected.append(next(alone))
        states.append(alone.get_state())
    for processes in (2, 4):
        several, _ = start(c, processes)
        for batch, state in zip(expected[:9], states, strict=False):
            np.testing.assert_equal(joined(several), batch)
            assert batches.union([iterator.get_state() for iterator in several]) == state
        fewer, _ = start(c, processes // 2)
        for iterator in fewer:
            iterator.set_state(batches.union([other.get_state() for other in several]))
        for batch in expected[9:]:
            np.testing.assert_equal(joined(fewer), batch)


def test_a_process_reads_its_shards_alone_and_together_they_read_all(start):
    c = settings(shards=4, ramp_steps=0)
    iterators, records = start(c, 4, documents=300)
    for iterator in iterators:
        for _ in range(8):  # of about 25 that an epoch has
            next(iterator)
    read = [set(record.read) for record in records]
    assert all(len(own) > 20 for own in read)
    assert len(set.union(*read)) == sum(map(len, read)) < 300
    for iterator in iterators:
        for _ in range(30):
            next(iterator)
        iterator.close()
    assert set().union(*(record.read for record in records)) == set(range(300))


def test_streams_of_a_set_in_memory_cover_its_epochs_together(monkeypatch):
    """Shard s of n has chunk s, s + n, … of what one stream has, whichever epoch they are of."""
    monkeypatch.setattr(lengths, "vary", lambda config: False)  # of one stream, another order
    docs = [{"text": f"{i:04}"} for i in range(50)]

    def read(shards, count):
        c = settings(shards=shards, packing="none", batch_size=2 * shards, ramp_steps=0)
        examples = making.examples(c, making.build_tokenizer(c, docs))
        chunks_ = chunks.Chunks(examples, docs, seed=5)
        assert len(chunks_) == 1
        makers = chunks.Makers(chunks_)
        streams = [batches.Stream(makers, shard, shards) for shard in range(shards)]
        found = [[next(stream)["tokens"].tobytes() for _ in range(count)] for stream in streams]
        makers.close()
        return found

    (alone,) = read(1, 200)
    first, second = read(2, 100)
    assert first == alone[:50] + alone[100:150] and second == alone[50:100] + alone[150:]


def test_what_gives_no_example_is_told():
    c = settings(ramp_steps=0)
    c.objective.name = "completion"
    docs = [{"parts": (Part("x" * 99, False), Part("late", True))}] * 3
    iterator = making.train_iterator(c, making.build_tokenizer(c, docs), docs)
    with pytest.raises(ConfigError, match="data.train: no document yields an example"):
        next(iterator)
    iterator.close()


def test_more_shards_than_rows():
    with pytest.raises(ConfigError, match=r"data\.shards=17: at most data\.batch_size=16"):
        settings(shards=17)

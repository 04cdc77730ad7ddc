"""Batches of rows: their size may grow in training, and a process reads only its share."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.chunks import DRAWN, Makers
from llm_jax.data.examples import Arrays
from llm_jax.data.lengths import stacked, trimmed

STAGES = 8  # batch sizes on the way to the full one: each is a program of its own

Rows = Callable[[int], np.ndarray | slice]  # of a batch of n, those that are wanted


def batch_size(data: ConfigDict, step: int) -> int:
    """Sequences of the batch that step 0, 1, … takes: ramp_start to batch_size over ramp_steps.

    Linear in STAGES stages, each a multiple of ramp_start (GPT-3: Brown 2020, appendix B).
    """
    if step >= data.ramp_steps:
        return data.batch_size
    grown = (data.batch_size - data.ramp_start) * (STAGES * step // data.ramp_steps) // STAGES
    return data.ramp_start + grown // data.ramp_start * data.ramp_start


class Stream(Iterator):
    """Rows of every `of`-th chunk from the `shard`-th, without end; the next chunks are made ahead.

    `get_state` is the chunk, of its own, and the row that come next; of a mixture also what was
    drawn of each source.
    """

    def __init__(self, makers: Makers, shard: int = 0, of: int = 1):
        self._makers, self._shard, self._of = makers, shard, of
        self._chunk, self._row, self._ahead = 0, 0, deque()
        self._drawn = 0  # documents and tokens of each source

    def __next__(self) -> Arrays:
        for _ in range(len(self._makers.chunks) + 1):
            while len(self._ahead) <= self._makers.count:
                number = (self._chunk + len(self._ahead)) * self._of + self._shard
                self._ahead.append(self._makers.start(number))
            rows = self._ahead[0].result()
            if self._row < len(rows):
                self._row += 1
                row = rows[self._row - 1]
                self._drawn += row.pop(DRAWN, 0)
                return row
            self._ahead.popleft()
            self._chunk, self._row = self._chunk + 1, 0
        raise ConfigError("data.train: no document gives an example; each is too short, or has "
                          "nothing to predict")

    def get_state(self) -> dict[str, int]:
        """What JSON can hold; stands exactly behind the last row returned."""
        drawn = {DRAWN: self._drawn.tolist()} if isinstance(self._drawn, np.ndarray) else {}
        return {"chunk": self._chunk, "row": self._row} | drawn

    def set_state(self, state: dict[str, int]) -> None:
        """Continues behind the row after which `get_state` was called."""
        self._chunk, self._row = state["chunk"], state["row"]
        self._drawn = np.array(state[DRAWN]) if DRAWN in state else 0
        self._ahead.clear()


class Batches(Iterator):
    """Batches of the rows that data.shards streams yield, without end, prefetched in a thread.

    Row i of a batch of n is the next of stream i * shards // n, whoever reads it. Of the streams
    only those are opened that yield rows which are `kept`. Not safe to be used by several threads.

    Args:
      streams: (shard) -> its rows.
      kept: (n) -> which rows of a batch of n the batches here have.
      close: stops what the streams have at work.
      ahead: batches made before they are asked for.
      trims: batches lose the positions that none of their rows needs.
    """

    def __init__(self, data: ConfigDict, streams: Callable[[int], Stream], kept: Rows,
                 close: Callable[[], object], ahead: int, trims: bool):
        self._data, self._kept, self._close, self._size = data, kept, close, ahead
        self._trims = trims
        sizes = {batch_size(data, step) for step in range(data.ramp_steps + 1)}
        mine = set().union(*(self._owners(n)[kept(n)].tolist() for n in sizes))
        self._streams, self._step = {shard: streams(shard) for shard in sorted(mine)}, 0
        self._thread, self._ahead = ThreadPoolExecutor(1), deque()
        self._state = self._place()

    def _owners(self, n: int) -> np.ndarray:
        """The stream of each row of a batch of n."""
        return np.arange(n) * self._data.shards // n

    def __next__(self) -> Arrays:
        while len(self._ahead) <= self._size:
            self._ahead.append(self._thread.submit(self._make))
        batch, self._state = self._ahead.popleft().result()
        return batch

    def _make(self) -> tuple[Arrays, dict]:
        n, nobody = batch_size(self._data, self._step), itertools.repeat(None)
        rows = [next(self._streams.get(shard, nobody)) for shard in self._owners(n).tolist()]
        self._step += 1
        rows = trimmed(rows) if self._trims else rows
        return stacked([rows[i] for i in np.arange(n)[self._kept(n)]]), self._place()

    def _place(self) -> dict:
        streams = {str(shard): stream.get_state() for shard, stream in self._streams.items()}
        return {"step": self._step, "streams": streams}

    def get_state(self) -> dict:
        """What JSON can hold; stands exactly behind the last batch returned."""
        return self._state

    def set_state(self, state: dict) -> None:
        """Continues behind the batch after which `get_state` was called, here or by several."""
        while self._ahead:
            self._ahead.pop().cancel()
        # In the thread, after the batch that it may be making.
        self._state = self._thread.submit(self._go, state).result()

    def _go(self, state: dict) -> dict:
        self._step = state["step"]
        for shard, stream in self._streams.items():
            stream.set_state(state["streams"][str(shard)])
        return self._place()

    def close(self) -> None:
        """Stops the work that is ahead."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._close()


def union(states: list[dict]) -> dict:
    """One state from those of processes that each read some of the streams."""
    return states[0] | {"streams": {k: v for s in states for k, v in s["streams"].items()}}

"""Batching of rows, with batch size ramp-up and per-process reading."""

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

STAGES = 8  # number of batch sizes during ramp-up: each compiles a program

Rows = Callable[[int], np.ndarray | slice]  # batch size -> selected rows


def batch_size(data: ConfigDict, step: int) -> int:
    """Returns the batch size of a step, from 0: ramp_start to batch_size over ramp_steps.

    Linear, in STAGES stages, each a multiple of ramp_start (GPT-3: Brown 2020, appendix B).
    """
    if step >= data.ramp_steps:
        return data.batch_size
    grown = (data.batch_size - data.ramp_start) * (STAGES * step // data.ramp_steps) // STAGES
    return data.ramp_start + grown // data.ramp_start * data.ramp_start


class Stream(Iterator):
    """Infinite iterator over the rows of every `of`-th chunk from `shard`, with prefetching.

    The state is the next chunk and row and, for a mixture, the counts drawn from each source.
    """

    def __init__(self, makers: Makers, shard: int = 0, of: int = 1):
        self._makers, self._shard, self._of = makers, shard, of
        self._chunk, self._row, self._ahead = 0, 0, deque()
        self._drawn = 0  # documents and tokens per source

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
        raise ConfigError("data.train: no document yields an example; each is too short, or has "
                          "nothing to predict")

    def get_state(self) -> dict[str, int]:
        """Returns the state after the last row returned, as JSON values."""
        drawn = {DRAWN: self._drawn.tolist()} if isinstance(self._drawn, np.ndarray) else {}
        return {"chunk": self._chunk, "row": self._row} | drawn

    def set_state(self, state: dict[str, int]) -> None:
        """Continues after the row at which `get_state` was called."""
        self._chunk, self._row = state["chunk"], state["row"]
        self._drawn = np.array(state[DRAWN]) if DRAWN in state else 0
        self._ahead.clear()


class Batches(Iterator):
    """Infinite iterator over batches of rows from data.shards streams, prefetched in a thread.

    Row i of a batch of n is the next row of stream i * shards // n, in any process. Only streams
    with `kept` rows are opened. Not thread-safe.

    Args:
      streams: shard -> its Stream.
      kept: n -> the rows of a batch of n to keep in this process.
      close: stops the workers of the streams.
      ahead: number of prefetched batches.
      trims: removes positions that are padding in all rows of a batch.
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
        """Returns the stream of each row of a batch of n."""
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
        """Returns the state after the last batch returned, as JSON values."""
        return self._state

    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `get_state` was called; state may be a `union`."""
        while self._ahead:
            self._ahead.pop().cancel()
        # Runs in the thread, after a batch that may be in progress.
        self._state = self._thread.submit(self._go, state).result()

    def _go(self, state: dict) -> dict:
        self._step = state["step"]
        for shard, stream in self._streams.items():
            stream.set_state(state["streams"][str(shard)])
        return self._place()

    def close(self) -> None:
        """Stops prefetching."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._close()


def union(states: list[dict]) -> dict:
    """Merges the states of processes that each read some of the streams."""
    return states[0] | {"streams": {k: v for s in states for k, v in s["streams"].items()}}

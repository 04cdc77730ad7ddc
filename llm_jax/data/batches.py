"""Rows to batches, which may grow during training, and of which a process reads only its share."""

from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError

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


class Batches:
    """Batches of the rows that data.shards streams yield one at a time, without end.

    Row i of a batch of n is the next of stream i * shards // n, whoever reads it. Of the streams
    only those are opened that yield rows which are `kept`.

    Args:
      streams: (shard) -> an iterator over rows with `get_state` and `set_state`.
      kept: (n) -> which rows of a batch of n the batches here have.
    """

    def __init__(self, data: ConfigDict, streams: Callable[[int], Iterator], kept: Rows):
        self._data, self._kept, self._step = data, kept, 0
        sizes = {batch_size(data, step) for step in range(data.ramp_steps + 1)}
        mine = set().union(*(self._owners(n)[kept(n)].tolist() for n in sizes))
        self._streams = {shard: streams(shard) for shard in sorted(mine)}

    def _owners(self, n: int) -> np.ndarray:
        """The stream of each row of a batch of n."""
        return np.arange(n) * self._data.shards // n

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        n = batch_size(self._data, self._step)
        rows = [
            next(self._streams[shard]) if shard in self._streams else None
            for shard in self._owners(n).tolist()
        ]
        self._step += 1
        rows = [rows[i] for i in np.arange(n)[self._kept(n)]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def get_state(self) -> dict:
        """What JSON can hold; stands exactly behind the last batch returned."""
        streams = {str(shard): stream.get_state() for shard, stream in self._streams.items()}
        return {"step": self._step, "streams": streams}

    def set_state(self, state: dict) -> None:
        """Continues behind the batch after which `get_state` was called, here or by several.

        Raises:
          ConfigError: a state that an older version of this project wrote.
        """
        if not {"step", "streams"} <= state.keys():
            raise ConfigError("the checkpoint's place in the data is of an older version of "
                              "llm_jax; resume it with that, or choose another --workdir")
        self._step = state["step"]
        for shard, stream in self._streams.items():
            stream.set_state(state["streams"][str(shard)])

    def close(self) -> None:
        """Stops what the streams have at work."""
        for stream in self._streams.values():
            stream.close()


def union(states: list[dict]) -> dict:
    """One state from those of processes that each read some of the streams."""
    return states[0] | {"streams": {k: v for s in states for k, v in s["streams"].items()}}

"""Checks and collectives between the processes of one job."""

import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # of which jax.distributed is the public half, without its client
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.batches import union

FOREVER = 10**9  # milliseconds; who has died is found out by JAX
SEEN_SECONDS = 60  # in which a file that one machine writes must be there for another
_ROUND = itertools.count()


def _judged(said: Any, judge: Callable[[list], str]) -> None:
    """Has process 0 judge what each says, a JSON value; all raise its verdict if there is one.

    Through JAX's key-value store: nothing is compiled, and no devices are needed.
    """
    state, key = distributed.global_state, f"llm_jax/agree/{next(_ROUND)}"
    if state.client is None:
        return
    state.client.key_value_set(f"{key}/{state.process_id}", json.dumps(said))
    get = lambda name: json.loads(state.client.blocking_key_value_get(f"{key}/{name}", FOREVER))
    if state.process_id == 0:
        verdict = judge([get(i) for i in range(state.num_processes)])
        state.client.key_value_set(f"{key}/verdict", json.dumps(verdict))
    if verdict := get("verdict"):
        raise ConfigError(verdict)


def agree(facts: Mapping[str, Any]) -> None:
    """Compares facts of a job's processes by name; ConfigError where they differ in one.

    It names the process, its host and the facts; all processes have to call it, and all raise.
    """
    _judged([socket.gethostname(), {key: repr(value) for key, value in facts.items()}], compare)


def compare(said: list[tuple[str, dict[str, str]]]) -> str:
    """In what (host, facts) of some process differ from those of process 0, in words."""
    host, ours = said[0]
    for i, (there, theirs) in enumerate(said):
        differ = [f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
                  for key in ours | theirs if ours.get(key) != theirs.get(key)]  # fmt: skip
        if differ:
            more = f" and {len(differ) - 5} more" * (len(differ) > 5)
            return (f"process {i} on {there} differs from process 0 on {host} ("
                    f"{'; '.join(differ[:5])}{more}); start all of a job with the same command, "
                    "on the same code and files")
    return ""


def share(folder: str | Path) -> None:
    """Checks that all processes of a job write into the same folder, or its nearest parent.

    Raises:
      ConfigError: in all processes, by the name of one that cannot write, or writes elsewhere.
    """
    path = Path(folder).absolute()
    above = next(p for p in (path, *path.parents) if p.exists())

    def judge(said):
        until = time.monotonic() + SEEN_SECONDS  # a network's folders are not current at once
        for i, (host, file, problem) in enumerate(said):
            who = f"--workdir={folder}: process {i} on {host}"
            if problem:
                return f"{who} cannot write into it ({problem})"
            while file not in os.listdir(above):
                if time.monotonic() > until:
                    return (f"{who} has another folder of that name than process 0 on "
                            f"{said[0][0]}; name one that all machines share")
                time.sleep(1)
        return ""

    if distributed.global_state.client is None:
        return
    file, problem = above / f".llm_jax-{uuid.uuid4().hex}", ""
    try:
        file.write_bytes(b".")
    except OSError as error:
        problem = os.strerror(error.errno)
    try:
        _judged((socket.gethostname(), file.name, problem), judge)
    finally:
        with suppress(OSError):
            file.unlink()


def gathered(state: dict, config: ConfigDict) -> dict:
    """The data iterator's state of all shards, gathered from the processes that read them."""
    if jax.process_count() == 1 or config.data.shards == 1:
        return state
    mine = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, max(sizes) - len(mine))))
    return union([json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)])

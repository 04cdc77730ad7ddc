"""Consistency checks and collectives between the processes of a job."""

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
from jax._src import distributed  # jax.distributed does not expose the client
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.batches import union

FOREVER = 10**9  # milliseconds; JAX detects dead processes
SEEN_SECONDS = 60  # time limit for a file of one machine to become visible to another
_ROUND = itertools.count()


def _judged(facts: Any, judge: Callable[[list], str]) -> None:
    """Process 0 applies `judge` to the JSON values of all; all raise its error message, if any.

    Uses JAX's key-value store: nothing is compiled, and no devices are needed.
    """
    state, key = distributed.global_state, f"llm_jax/agree/{next(_ROUND)}"
    if state.client is None:
        return
    state.client.key_value_set(f"{key}/{state.process_id}", json.dumps(facts))
    get = lambda name: json.loads(state.client.blocking_key_value_get(f"{key}/{name}", FOREVER))
    if state.process_id == 0:
        verdict = judge([get(i) for i in range(state.num_processes)])
        state.client.key_value_set(f"{key}/verdict", json.dumps(verdict))
    if verdict := get("verdict"):
        raise ConfigError(verdict)


def agree(facts: Mapping[str, Any]) -> None:
    """Checks that named facts are equal in all processes of a job; raises ConfigError if not.

    The message names the process, its host and the facts. A collective call: all processes raise.
    """
    _judged([socket.gethostname(), {key: repr(value) for key, value in facts.items()}], compare)


def compare(facts: list[tuple[str, dict[str, str]]]) -> str:
    """Returns how (host, facts) of a process differ from those of process 0, or ""."""
    host, ours = facts[0]
    for i, (there, theirs) in enumerate(facts):
        differ = [f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
                  for key in ours | theirs if ours.get(key) != theirs.get(key)]  # fmt: skip
        if differ:
            more = f" and {len(differ) - 5} more" * (len(differ) > 5)
            return (f"process {i} on {there} differs from process 0 on {host} ("
                    f"{'; '.join(differ[:5])}{more}); start all processes with the same command, "
                    "code and files")
    return ""


def share(folder: str | Path) -> None:
    """Checks that all processes of a job share a folder, or its nearest existing parent.

    Raises:
      ConfigError: in all processes; names one that cannot write, or has a different folder.
    """
    path = Path(folder).absolute()
    above = next(p for p in (path, *path.parents) if p.exists())

    def judge(facts):
        until = time.monotonic() + SEEN_SECONDS  # network file systems update with a delay
        for i, (host, file, problem) in enumerate(facts):
            who = f"--workdir={folder}: process {i} on {host}"
            if problem:
                return f"{who} cannot write to it ({problem})"
            while file not in os.listdir(above):
                if time.monotonic() > until:
                    return (f"{who} has a different folder of that name than process 0 on "
                            f"{facts[0][0]}; use a folder that all machines share")
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
    """Gathers the data iterator's state of all shards from the processes that read them."""
    if jax.process_count() == 1 or config.data.shards == 1:
        return state
    mine = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, max(sizes) - len(mine))))
    return union([json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)])

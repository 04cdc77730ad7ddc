"""Checks and collectives between the processes of one job."""

import hashlib
import json

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data.batches import union
from llm_jax.data.tokenizers import Tokenizer


def agree(config: ConfigDict, tokenizer: Tokenizer, text: dict) -> None:
    """Compares config, text and tokenizer of a job's processes; ConfigError where they differ."""
    if jax.process_count() == 1:
        return
    parts = {"config": configs.to_json(config), "text": sorted(text.items()),
            "tokenizer": (tokenizer.kind, tokenizer.pieces())}  # fmt: skip
    digest = lambda x: hashlib.blake2b(repr(x).encode(), digest_size=16).digest()
    mine = np.array([list(digest(x)) for x in parts.values()], np.uint8)
    for process, theirs in enumerate(multihost_utils.process_allgather(mine)):
        if differ := [n for n, a, b in zip(parts, mine, theirs, strict=True) if (a != b).any()]:
            raise ConfigError(f"processes {jax.process_index()} and {process} have another "
                              f"{', '.join(differ)}; start all of a job with the same command, on "
                              "the same files")


def gathered(state: dict, config: ConfigDict) -> dict:
    """The data iterator's state of all shards, gathered from the processes that read them."""
    if jax.process_count() == 1 or config.data.shards == 1:
        return state
    mine = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, max(sizes) - len(mine))))
    return union([json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)])

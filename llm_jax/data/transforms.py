"""What an objective makes of a stretch of tokens: one table, and the shared pieces."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError


class Objective(NamedTuple):
    """How an objective reads a document: s = [bos] + tokens + [eos], cut in windows.

    `make(window int[n], rng, tokenizer, config)` returns an example: a dict of 1-D arrays.
    `overlap` tokens belong to two neighbouring windows (1 where a target is the next token).
    `stride(config)` is how many new tokens a window holds.
    `lengths(config)` maps each field of an example to its length in a row.
    """

    make: Callable
    overlap: int
    stride: Callable
    lengths: Callable


def causal_lm(window: np.ndarray, rng, tokenizer, config) -> dict[str, np.ndarray]:
    """Each token predicts the next: tokens = s[:-1], targets = s[1:], weights 1."""
    window = window.astype(np.int32)
    return {
        "tokens": window[:-1],
        "targets": window[1:],
        "weights": np.ones(len(window) - 1, np.float32),
    }


def _row(config: ConfigDict) -> int:
    return config.model.max_length


def _decoder_lengths(config: ConfigDict) -> dict[str, int]:
    return dict.fromkeys(("tokens", "targets", "weights"), config.model.max_length)


OBJECTIVES = {
    "causal_lm": Objective(causal_lm, overlap=1, stride=_row, lengths=_decoder_lengths),
}


def objective(config: ConfigDict) -> Objective:
    """Returns the table's entry for config.objective.name; raises ConfigError if it has none."""
    if config.objective.name not in OBJECTIVES:
        raise ConfigError(f"objective.name: {config.objective.name!r} has no data; it must be one "
                          f"of {sorted(OBJECTIVES)}")
    return OBJECTIVES[config.objective.name]

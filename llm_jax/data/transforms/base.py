"""What every objective tells the pipeline."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer

Arrays = dict[str, np.ndarray]


class Transform:
    """How an objective reads documents and what it makes of them, for one tokenizer.

    A document is tokens (or s = [bos] + tokens + [eos], if `framed`), cut in windows of `stride`
    tokens and `overlap` more that the next window has too; or a pair of texts, if `pairs`.
    """

    pairs = False
    framed = False
    overlap = 0
    scalars: tuple[str, ...] = ()  # fields of an example that are one number: [B] in a batch
    needs: dict[str, tuple] = {}  # of the config: key -> values that will do, the usual one first
    row: Callable[[Arrays, np.random.Generator], Arrays] | None = None  # finishes a packed row

    def __init__(self, tokenizer: Tokenizer, config: ConfigDict):
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Raises ConfigError where the config lacks what this objective needs."""
        flat = {key: config[key.split(".")[0]][key.split(".")[1]] for key in cls.needs}
        for key, value in flat.items():
            allowed = cls.needs[key]
            if key == "model.head":  # which may have others besides
                fits = any(set(heads.split(",")) <= set(value.split(",")) for heads in allowed)
            else:
                fits = value in allowed
            if not fits:
                raise ConfigError(
                    f"{key}={value!r}: objective.name={config.objective.name!r} needs "
                    f"{' or '.join(map(repr, allowed))}; set {key}={allowed[0]}, or choose "
                    "another objective"
                )

    @classmethod
    def specials(cls, config: ConfigDict) -> tuple[str, ...]:
        """Special tokens that a tokenizer trained for this objective must have."""
        return ()

    @classmethod
    def lengths(cls, config: ConfigDict) -> dict[str, int]:
        """Length in a row of each field that `example` returns, scalars excepted."""
        return {"tokens": config.model.max_length}

    @classmethod
    def predicted(cls, config: ConfigDict) -> int:
        """Positions of a row for which the model predicts a token."""
        return cls.lengths(config)["tokens"]

    @property
    def stride(self) -> int:
        """New tokens in a window."""
        return self.config.model.max_length

    def example(
        self, window, rng: np.random.Generator, elsewhere: Callable[[int], np.ndarray]
    ) -> Arrays | None:
        """Returns the fields made of a window (or a pair of texts), 1-D; None drops it.

        `elsewhere(n)` draws up to n tokens from a random place in another document.
        """
        raise NotImplementedError


def decoder_fields(s: np.ndarray) -> Arrays:
    """Each token predicts the next: tokens = s[:-1], targets = s[1:], weights 1."""
    s = s.astype(np.int32)
    return {"tokens": s[:-1], "targets": s[1:], "weights": np.ones(len(s) - 1, np.float32)}


def decoder_lengths(length: int) -> dict[str, int]:
    """Rows of what `decoder_fields` returns."""
    return dict.fromkeys(("tokens", "targets", "weights"), length)

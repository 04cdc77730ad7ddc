"""Logits processors that depend on previous tokens: repetition penalty, minimum length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rules(NamedTuple):
    """Logits processors in transformers' order; None omits one from the compiled program.

    Attributes:
      penalty: repetition penalty (Keskar 2019, arXiv:1909.05858, 4.1): logits of ids in the row,
        prompt included, are divided by it if positive, and multiplied if negative. Beam search
        applies it to log-probabilities, as transformers does.
      least: minimum tokens [B] before a row may end.
    """

    penalty: Any
    least: Any

    @classmethod
    def of(cls, penalty: float, least: int | Sequence[int], rows: int) -> "Rules":
        """Creates the rules for these settings and a number of rows."""
        least = np.broadcast_to(np.array(least, np.int32), rows) if np.any(least) else None
        return cls(None if penalty == 1 else np.float32(penalty), least)

    def seen(self, rows: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray | None:
        """Returns the ids in each row, bool [B, V]; None if no rule needs them."""
        if self.penalty is None:
            return None
        seen = np.zeros((len(rows), vocabulary), bool)
        for has, row in zip(seen, rows, strict=True):
            has[np.array(row, int)] = True
        return seen

    def saw(self, seen: Any, token: jax.Array) -> Any:
        """Adds a token per row [...] to `seen` [..., V]."""
        if seen is None:
            return None
        return seen | (jnp.arange(seen.shape[-1]) == token[..., None])

    def apply(self, logits: jax.Array, seen: Any, index: Any, eos: jax.Array) -> jax.Array:
        """Processes logits [B, ..., V] of the token at `index` after each prompt."""
        if self.penalty is not None:
            changed = jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = jnp.where(seen, changed, logits)
        if self.least is not None:
            early = (index < self.least).reshape(-1, *[1] * (logits.ndim - 1))
            end = (jnp.arange(logits.shape[-1])[:, None] == eos).any(-1)
            logits = jnp.where(early & end, -jnp.inf, logits)
        return logits

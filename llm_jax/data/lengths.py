"""Length bucketing: batches rows of similar length, and trims batches to the longest row."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from llm_jax.data.examples import Arrays

WINDOW = 16  # batches whose rows are sorted by length together
SHORTEST = 16  # minimum length of a batch; lengths are multiples of 8


def vary(config: ConfigDict) -> bool:
    """Whether batch lengths vary: with one example per row, a single stream, no split rows.

    With several streams, a process knows the lengths of its own rows only.
    """
    return (config.data.packing == "none" and config.data.shards == 1
            and config.mesh.context in (1, 2, 4, 8))


def alike(
    order: Sequence[int], sizes: np.ndarray, batch: int, first: int, rng: np.random.Generator
) -> list[int]:
    """Returns an order of rows with similar lengths within a batch, and random order of batches.

    Batches are shuffled because lengths may correlate with labels.

    Args:
      order: a random order of a chunk's rows.
      first: number of rows that complete the last batch of the previous chunk.
    """
    out = list(order[:first])
    for start in range(first, len(order), WINDOW * batch):
        part = sorted(order[start : start + WINDOW * batch], key=sizes.__getitem__)
        batches = [part[i : i + batch] for i in range(0, len(part), batch)]
        begun = batches.pop() if len(batches[-1]) < batch else []  # the next chunk completes it
        for i in rng.permutation(len(batches)):
            out += batches[i]
        out += begun
    return out


def trimmed(rows: Sequence[Arrays]) -> list[Arrays]:
    """Removes trailing positions that are padding in all rows.

    The length of each side is rounded up to a power of two or 1.5 times one, so that few programs
    are compiled.
    """
    rows = [dict(row) for row in rows]
    for side in ("", "encoder_"):
        ids = [row[f"{side}segment_ids"] for row in rows if f"{side}segment_ids" in row]
        most, longest = len(ids[0]) if ids else 0, max((int((x > 0).sum()) for x in ids), default=0)
        quarter = max(SHORTEST // 2, (1 << (longest - 1).bit_length()) // 4)
        kept = min(most, max(SHORTEST, -(-longest // quarter) * quarter))
        for row in rows:
            row |= {name: x[:kept] for name, x in row.items()
                    if name.startswith("encoder_") == bool(side) and np.shape(x)[:1] == (most,)}
    return rows


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """Stacks rows to a batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

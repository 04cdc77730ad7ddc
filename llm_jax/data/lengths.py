"""Rows of similar length share a batch, which has no more positions than its longest row needs."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from llm_jax.data.examples import Arrays

WINDOW = 16  # batches whose rows are sorted together
SHORTEST = 16  # positions of a batch; all lengths are multiples of 8


def vary(config: ConfigDict) -> bool:
    """Whether batches are of several lengths: where a row is one example, and one process has all.

    With several streams a process packs only its own; and a mesh may split a row.
    """
    return (config.data.packing == "none" and config.data.shards == 1
            and config.mesh.context in (1, 2, 4, 8))


def alike(
    order: Sequence[int], sizes: np.ndarray, batch: int, first: int, rng: np.random.Generator
) -> list[int]:
    """Returns an order in which the rows of each batch are of similar size, batches in any order.

    Long rows and short ones may have other labels: steps that saw one after the other, by size,
    would follow that.

    Args:
      order: of a chunk's rows, a random one.
      first: rows that still belong to a batch of the chunk before.
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
    """Returns rows without the positions that are padding in all of them.

    Each side keeps as many as its longest row needs, rounded up to a power of two or one and a half
    times one, so that few programs are compiled.
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
    """Returns a batch of rows."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

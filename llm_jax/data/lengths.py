"""Rows of similar length share a batch, which has no more positions than its longest row needs."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from llm_jax.data.examples import Arrays

WINDOW = 16  # batches whose rows are sorted together
SHORTEST = 16  # positions of a batch


def vary(config: ConfigDict) -> bool:
    """Whether batches are of several lengths: with one example a row, each of which all know.

    With several streams a process packs only its own; and a mesh may split a row.
    """
    return (config.data.packing == "none" and config.data.shards == 1
            and config.mesh.context in (1, 2, 4, 8, SHORTEST))


def alike(order: Sequence[int], sizes: np.ndarray, window: int) -> list[int]:
    """Returns an order in which neighbours are of similar size, and random beyond `window`.

    Each window of it is sorted, up and down in turns, so that batches may begin anywhere.
    """
    out = []
    for n, start in enumerate(range(0, len(order), window)):
        out += sorted(order[start : start + window], key=sizes.__getitem__, reverse=n % 2 > 0)
    return out


def trimmed(rows: Sequence[Arrays]) -> list[Arrays]:
    """Returns rows without the positions that are padding in all of them.

    Each side keeps as many as its longest row needs, rounded up to a power of two, so that few
    programs are compiled.
    """
    rows = [dict(row) for row in rows]
    for side in ("", "encoder_"):
        ids = [row[f"{side}segment_ids"] for row in rows if f"{side}segment_ids" in row]
        most, longest = len(ids[0]) if ids else 0, max((int((x > 0).sum()) for x in ids), default=0)
        kept = min(most, max(SHORTEST, 1 << (longest - 1).bit_length()))
        for row in rows:
            row |= {name: x[:kept] for name, x in row.items()
                    if name.startswith("encoder_") == bool(side) and np.shape(x)[:1] == (most,)}
    return rows


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """Returns a batch of rows."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

"""Relative position bias (T5, ALiBi): a function of distance, never held for all pairs at once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bias:
    """Added to the score of a query and a key, by head and distance (T5's buckets, ALiBi).

    Attributes:
      values: [N, 2 L - 1] for key index minus query index from 1 - L to L - 1.
    """

    values: Array

    def tile(self, offset: int | Array, T: int, S: int) -> Array:
        """Returns [N, T, S], where the first key stands `offset` after the first query.

        Distances beyond the table count as its ends'.
        """
        # A row is its neighbour shifted by one: laying out T + S values again and again, in rows
        # one shorter, does that without a gather, whose gradient would be a slow scatter.
        wide = jnp.pad(self.values, ((0, 0), (T + S, T + S)), mode="edge")
        zero = wide.shape[1] // 2 + offset
        away = jax.lax.dynamic_slice_in_dim(wide, zero - T, T + S, axis=1)  # of key 0, query T
        away = jnp.roll(away, -T, axis=1)  # distances 0 .. S - 1, then -T .. -1
        N = len(away)
        rows = jnp.broadcast_to(away[:, None], (N, T, T + S)).reshape(N, -1)
        return rows[:, : T * (T + S - 1)].reshape(N, T, T + S - 1)[..., :S]

    def block(self, offset: Array | None, start: int, T: int, first: int, S: int) -> Array:
        """Returns [1 or B, N, T, S] for T queries from `start` and S keys from `first`.

        offset: () or [B], index of the first query among the keys; None: 0.
        """
        if offset is None:
            return self.tile(first - start, T, S)[None]
        tiles = jax.vmap(lambda offset: self.tile(first - start - offset, T, S))
        return tiles(jnp.atleast_1d(offset))

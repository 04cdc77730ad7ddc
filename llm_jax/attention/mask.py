"""What each query may look at, as structure rather than as an array."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """The visible keys of each query: (causal & window | prefix) & same segment.

    Padding is segment 0 on both sides: padded queries see padded keys, so no row of a
    packed batch is empty, and no real token sees padding.

    Attributes:
      query_segments: [B, T] int; a query sees only keys of its own segment. None: all one.
      key_segments: [B, S] int; given together with query_segments.
      query_offset: () or [B] int; index of the first query among the keys, for decoding
        with a cache. None: 0.
      prefix: [B] int; every query sees this many leading keys (a prefix language model).
      causal: a query sees no later key.
      window: keys a query sees back, itself included; without `causal` as many ahead.
      chunk: length of the chunks that positions fall into; a query sees its own and the one
        before, without `causal` the one after too.
    """

    query_segments: Array | None = None
    key_segments: Array | None = None
    query_offset: Array | None = None
    prefix: Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    chunk: int | None = dataclasses.field(default=None, metadata={"static": True})

    def dense(self, T: int, S: int) -> Array | None:
        """Returns bool [B or 1, 1, T, S], true where query t sees key s; None: everywhere."""
        return self.block((0, T), (0, S))

    def block(self, queries: tuple[int, int], keys: tuple[int, int]) -> Array | None:
        """Returns `dense` for the queries and keys from start to stop only."""
        visible = None
        if self.causal or self.window is not None or self.chunk is not None:
            query = jnp.arange(*queries)[None, :, None]
            if self.query_offset is not None:
                query = query + jnp.reshape(self.query_offset, (-1, 1, 1))
            key = jnp.arange(*keys)[None, None, :]
            visible = self.near(query, key)
            if self.prefix is not None:
                visible |= key < jnp.reshape(self.prefix, (-1, 1, 1))
        if self.query_segments is not None:
            ours, theirs = self.query_segments[:, slice(*queries)], self.key_segments
            same = ours[:, :, None] == theirs[:, None, slice(*keys)]
            visible = same if visible is None else visible & same
        return None if visible is None else visible[:, None]

    def near(self, query: Array, key: Array) -> Array:
        """Returns bool: does a query at one index see a key at another, by these alone?"""
        visible = jnp.ones((), bool)
        if self.causal:
            visible &= key <= query
        if self.window is not None:
            visible &= key > query - self.window
        if self.window is not None and not self.causal:
            visible &= key < query + self.window
        if self.chunk is not None:
            visible &= jnp.abs(query // self.chunk - key // self.chunk) <= 1
        return visible

    def span(self, queries: tuple[int, int], T: int, S: int) -> tuple[int, int]:
        """Returns start and stop of keys outside which these queries see nothing."""
        start, stop = 0, S
        if T == S and self.query_offset is None and self.prefix is None:
            if self.window is not None:
                start = max(0, queries[0] - self.window + 1)
                stop = min(S, queries[1] + self.window - 1)
            if self.causal:
                stop = queries[1]
        return start, stop

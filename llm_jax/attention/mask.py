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
      key_segments: [B, S] int.
      query_offset: () or [B] int; index of the first query among the keys, for decoding
        with a cache. None: 0.
      prefix: [B] int; every query sees this many leading keys (a prefix language model).
      causal: a query sees no later key.
      window: keys a query sees back, itself included; without `causal` as many ahead.
    """

    query_segments: Array | None = None
    key_segments: Array | None = None
    query_offset: Array | None = None
    prefix: Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def dense(self, T: int, S: int) -> Array | None:
        """Returns bool [B or 1, 1, T, S], true where query t sees key s; None: everywhere."""
        return self.block(slice(0, T), slice(0, S))

    def block(self, queries: slice, keys: slice) -> Array | None:
        """Returns the dense mask of some queries against some keys; see `dense`."""
        visible = None
        if self.causal or self.window:
            query = jnp.arange(queries.start, queries.stop)[None, :, None]
            if self.query_offset is not None:
                query = query + jnp.reshape(self.query_offset, (-1, 1, 1))
            key = jnp.arange(keys.start, keys.stop)[None, None, :]
            visible = jnp.ones((), bool)
            if self.causal:
                visible &= key <= query
            if self.window:
                visible &= key > query - self.window
                if not self.causal:
                    visible &= key < query + self.window
            if self.prefix is not None:
                visible |= key < jnp.reshape(self.prefix, (-1, 1, 1))
        if self.query_segments is not None:
            same = self.query_segments[:, queries, None] == self.key_segments[:, None, keys]
            visible = same if visible is None else visible & same
        return None if visible is None else visible[:, None]

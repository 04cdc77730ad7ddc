"""Attention masks as structure (causal, window, segments …) instead of arrays of all pairs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def static(default: Any) -> Any:
    """Declares a dataclass field as static metadata of the pytree."""
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Attention mask: (causal | prefix) & (near | global) & same segment.

    Padding is segment 0 for queries and keys: padded queries attend to padded keys, so no row of
    the mask is empty, and real tokens never attend to padding.

    Attributes:
      query_segments: [B, T] int; a query attends to keys of its own segment only. None: one
        segment.
      key_segments: [B, S] int; required with query_segments.
      query_offset: () or [B] int; index of the first query among the keys, for decoding with a KV
        cache. None: 0.
      prefix: [B] int; number of leading keys visible to all queries (prefix language model).
      key_places: [B, S] int; positions of the keys, for a rolling cache. None: their indices.
      causal: later keys are masked.
      window: number of visible keys backwards, itself included; without `causal` also forwards.
      chunk: chunk length; a query attends to its own chunk and the previous one, without `causal`
        also to the next.
      stride: only keys at a distance that is a multiple of it are visible.
      global_tokens: number of leading tokens that attend to, and are visible to, any distance.
    """

    query_segments: Array | None = None
    key_segments: Array | None = None
    query_offset: Array | None = None
    prefix: Array | None = None
    key_places: Array | None = None
    causal: bool = static(False)
    window: int | None = static(None)
    chunk: int | None = static(None)
    stride: int | None = static(None)
    global_tokens: int = static(0)

    @property
    def asked(self) -> set[str]:
        """Returns the names in ABILITIES that the mask requires, except packing."""
        given = {
            "causal": self.causal,
            "bidirectional": not self.causal,
            "prefix": self.prefix is not None,
            "cache": self.query_offset is not None,
        }
        return {name for name, is_set in given.items() if is_set}

    @property
    def whole(self) -> bool:
        """Whether queries and keys are the same tokens, without a prefix or cache positions."""
        return self.query_offset is None and self.prefix is None

    @property
    def aligned(self) -> bool:
        """Whether all rows have the same query offset, without a prefix or cache positions."""
        in_order = self.prefix is None and self.key_places is None
        return in_order and (self.query_offset is None or self.query_offset.ndim == 0)

    def dense(self, T: int, S: int) -> Array | None:
        """Returns bool [B or 1, 1, T, S], true for visible pairs; None: all are visible."""
        return self.tile(0, T, 0, S)

    def tile(self, start: int | Array, T: int, first: int | Array, S: int) -> Array | None:
        """Returns the tile of `dense` for T queries from `start` and S keys from `first`."""
        visible = None
        if self.causal or self.window or self.chunk or self.stride:
            query = self.places(start, T)[..., None]
            key = (first + jnp.arange(S))[None, None, :]
            if self.key_places is not None:
                key = jax.lax.dynamic_slice_in_dim(self.key_places, first, S, axis=1)[:, None]
            prefix = None if self.prefix is None else jnp.reshape(self.prefix, (-1, 1, 1))
            visible = self.near(query, key, prefix)
        if self.query_segments is not None:
            ours = jax.lax.dynamic_slice_in_dim(self.query_segments, start, T, axis=1)
            theirs = jax.lax.dynamic_slice_in_dim(self.key_segments, first, S, axis=1)
            same = ours[:, :, None] == theirs[:, None]
            visible = same if visible is None else visible & same
        return None if visible is None else visible[:, None]

    def places(self, start: int | Array, T: int) -> Array:
        """Returns the key indices [B or 1, T] of T queries from `start`."""
        places = (start + jnp.arange(T))[None]
        if self.query_offset is None:
            return places
        return places + jnp.reshape(self.query_offset, (-1, 1))

    def near(self, query: Array, key: Array, prefix: Array | None = None) -> Array:
        """Returns bool: visibility by query and key indices, without segments."""
        visible = jnp.ones((), bool)
        if self.window is not None:
            visible &= jnp.abs(query - key) < self.window
        if self.chunk is not None:
            visible &= jnp.abs(query // self.chunk - key // self.chunk) <= 1
        if self.stride is not None:
            visible &= (query - key) % self.stride == 0
        if self.global_tokens:
            visible |= (query < self.global_tokens) | (key < self.global_tokens)
        if not self.causal:
            return visible
        return visible & ((key <= query) if prefix is None else (key <= query) | (key < prefix))

    def span(self, queries: tuple, T: int, S: int) -> tuple:
        """Returns (start, stop) of the keys that contain all visible keys of these queries.

        queries: (start, stop). The result is traced if they, or the offset, are traced.
        """
        start, stop = 0, S
        if self.query_offset is not None and self.aligned:
            queries = tuple(x + self.query_offset for x in queries)
        if (T == S and self.whole) or (self.query_offset is not None and self.aligned):
            traced = isinstance(queries[0], Array)
            least, most = (jnp.minimum, jnp.maximum) if traced else (min, max)
            if self.window is not None and not self.global_tokens:
                start = most(0, queries[0] - self.window + 1)
                stop = least(S, queries[1] + self.window - 1)
            if self.causal:
                stop = least(S, queries[1])
        return start, stop

"""`Variant`: declares the features, config keys, parameters and costs of an attention variant."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

ABILITIES = {
    "causal": "causal masks",
    "bidirectional": "attention to later tokens",
    "cross": "cross-attention",
    "packing": "several segments in a row",
    "prefix": "a bidirectional prefix",
    "cache": "incremental decoding with a cache",
    "grouped": "fewer key heads than query heads",
    "bias": "relative or ALiBi positions",
    "softcap": "soft-capped scores",
    "sinks": "a learned sink logit",
    "dropout": "dropout of attention weights",
    "weights": "an output that is a weighted sum of the values",
}


class Weight(NamedTuple):
    """A learned array, passed to attend by name."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axis names
    init: Callable = jax.nn.initializers.zeros  # (key, shape, dtype) -> array


class Projection(NamedTuple):
    """A learned projection of the layer's input, [B, T, *shape], passed to attend by name."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    bias: float | None = None  # initial value of the bias; None: no bias
    of_keys: bool = False  # for all keys, [B, S, *shape], cached like keys
    rank: int = 0  # rank of a product of two matrices; 0: one matrix
    inner: Callable = lambda x: x  # applied between the two
    rotary: bool = False  # rotary positions are applied, as to keys
    detached: bool = False  # stops the gradient to the layer's input


@dataclass(frozen=True)
class Variant:
    """One attention variant.

    Attributes:
      attend: (query [B,T,N,H], key [B,S,K,H], value [B,S,K,H], mask, scoring, **options)
        -> [B,T,N,H]. If it reads value_dim, values and output are [..., value_dim]; if it reads
        num_key_heads and that is not 0, query and key have num_key_heads heads, and values N.
      supports: names in ABILITIES.
      flops: (T, S, N, H, **reads) -> forward FLOPs of one sequence without masking, and without the
        layer's matrices, which models/flops.py counts by shape.
      memory: (T, S, N, H, **reads) -> elements saved per sequence for the backward pass, besides
        query, key, value and output.
      source: the paper.
      reads: keys of config.model passed to all these functions as keyword arguments.
      weights: (N, K, H, **reads) -> {name: Weight}.
      projections: (N, K, H, **reads) -> {name: Projection}.
      decide: (query, random key, **reads) -> the argument `decided` of attend: choices without a
        gradient (LSH's buckets, Performer's directions), which a reversible stack saves for its
        backward pass. None: none.
      state: (N, K, H, **reads) -> shape of the recurrent state that replaces the KV cache. Given
        `state` [B, *shape], the initial state, and `valid` [B, T], the tokens that update it,
        attend returns (output, state).
      writes: (**reads) -> number of keys and values per head and token, adjacent:
        [B, T, K writes, H].
      reach: (**reads) -> number of keys backwards that a query can attend to, itself included,
        which limits the KV cache. None: all.
      gate: activation of model.output_gate: output times gate(projection of the layer's input).
      shared_qk: queries are also the keys; attend's key is None.
      loss: attend returns (output, [B, T] losses) that are added to the objective.
      leaks: how an output depends on later tokens despite a causal mask; training a decoder logs it
        as a warning. "": not at all.
    """

    attend: Callable
    supports: frozenset[str]
    flops: Callable[..., float]
    memory: Callable[..., float]
    source: str
    reads: tuple[str, ...] = ()
    weights: Callable[..., dict[str, Weight]] = lambda N, K, H, **_: {}
    projections: Callable[..., dict[str, Projection]] = lambda N, K, H, **_: {}
    decide: Callable | None = None
    state: Callable | None = None
    writes: Callable[..., int] = lambda **_: 1
    reach: Callable[..., int] | None = None
    gate: Callable = jax.nn.sigmoid
    shared_qk: bool = False
    loss: bool = False
    leaks: str = ""

    def settings(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the keyword arguments of these functions from a layer's config."""
        return {name: cfg[name] for name in self.reads}


def able(words: str) -> frozenset[str]:
    """Returns a set of ABILITIES from their names; after a leading "-", all others."""
    names = words.split()
    without = names[:1] == ["-"]
    names = frozenset(names[without:])
    if not names <= ABILITIES.keys():
        raise ValueError(f"not among ABILITIES: {sorted(names - ABILITIES.keys())}")
    return frozenset(ABILITIES) - names if without else names

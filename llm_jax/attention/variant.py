"""The record by which a kind of attention declares what it supports, reads, learns and costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

ABILITIES = {
    "causal": "a query sees no later key",
    "bidirectional": "a query sees what comes after it",
    "cross": "keys are of another sequence",
    "packing": "several segments in a row",
    "prefix": "a prefix that all see",
    "cache": "going on from what was read before",
    "grouped": "fewer key heads than query heads",
    "bias": "relative or ALiBi positions",
    "softcap": "capped scores",
    "sinks": "a learned score without a value",
    "dropout": "dropout of attention weights",
    "weights": "an output that is a weighted sum of the values, so that weights can be read",
}


class Weight(NamedTuple):
    """A learned array that attend takes by name."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axes, as models/ names them
    init: Callable = jax.nn.initializers.zeros  # (key, shape, dtype) -> array


class Projection(NamedTuple):
    """A learned projection of the layer's input, [B, T, *shape], that attend takes by name."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    bias: float | None = None  # what its bias starts at; None: no bias
    of_keys: bool = False  # attend takes those of all keys, [B, S, *shape]: cached as keys are
    rank: int = 0  # of two matrices that it is the product of; 0: one matrix
    inner: Callable = lambda x: x  # between these two
    rotary: bool = False  # turned where keys are
    detached: bool = False  # its gradient does not reach the layer's input


@dataclass(frozen=True)
class Variant:
    """One kind of attention.

    Attributes:
      attend: (query [B,T,N,H], key [B,S,K,H], value [B,S,K,H], mask, scoring, **options)
        -> [B,T,N,H]. If it reads value_dim, values and output are [..., value_dim]; if it reads
        num_key_heads and that is not 0, so many are the heads of query and key, and values have N.
      supports: names of ABILITIES.
      flops: (T, S, N, H, **reads) -> operations of one sequence's forward pass, nothing masked;
        without the layer's matrices, which models/flops.py counts by their shapes.
      memory: (T, S, N, H, **reads) -> numbers one sequence keeps for the backward pass, beyond
        query, key, value and output.
      source: where it comes from.
      reads: keys of config.model that all these functions take as keywords.
      weights: (N, K, H, **reads) -> {name: Weight}.
      projections: (N, K, H, **reads) -> {name: Projection}.
      decide: (query, random key, **reads) -> an array that attend takes as `decided`: what is
        chosen without a gradient (LSH's buckets, Performer's directions), kept by a reversible
        stack for its backward pass. None: nothing.
      state: (N, K, H, **reads) -> shape of what it carries from token to token instead of a
        cache of keys. Given `state` [B, *shape], before the first token, and `valid` [B, T], which
        tokens may change it, attend returns (output, state).
      writes: (**reads) -> keys and values of a head and token, beside each other, where these are
        several: [B, T, K writes, H].
      reach: (**reads) -> keys back to which a query sees, itself included, beyond which a cache
        keeps none. None: all.
      gate: of model.output_gate: output times gate(projection of the layer's input).
      shared_qk: queries serve as keys; attend's key is None.
      loss: attend returns (output, [B, T] losses), what is minimised beside the objective.
      leaks: what later tokens decide of an earlier one's output in spite of a causal mask, of
        which a decoder's training is warned; "": nothing.
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
        """Those keys of a layer's config that these functions take as keywords."""
        return {name: cfg[name] for name in self.reads}


def able(words: str) -> frozenset[str]:
    """A set of abilities from their names; those after a minus are all but these."""
    names = words.split()
    without = names[:1] == ["-"]
    names = frozenset(names[without:])
    if not names <= ABILITIES.keys():
        raise ValueError(f"not among ABILITIES: {sorted(names - ABILITIES.keys())}")
    return frozenset(ABILITIES) - names if without else names

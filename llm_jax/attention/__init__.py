"""Attention variants by name: the function, what it supports, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

from llm_jax.attention import dense, flash
from llm_jax.attention.mask import Mask

__all__ = ["VARIANTS", "Mask", "Variant", "get"]


@dataclass(frozen=True)
class Variant:
    """One kind of attention.

    Attributes:
      attend: (query [B,T,N,H], key [B,S,K,H], value [B,S,K,H], mask, *, bias, scale,
        dropout_rate, dropout_key) -> [B,T,N,H].
      supports: of causal, bidirectional, cross, bias, cache, packing, window, prefix,
        dropout, grouped.
      flops: (T, S, N, H) -> operations of one sequence's forward pass.
      memory: (T, S, N, H) -> numbers one sequence keeps for the backward pass, beyond
        query, key, value and output.
      source: where it comes from.
    """

    attend: Callable
    supports: frozenset[str]
    flops: Callable[[int, int, int, int], float]
    memory: Callable[[int, int, int, int], float]
    source: str


EVERYTHING = frozenset(
    "causal bidirectional cross bias cache packing window prefix dropout grouped".split()
)

VARIANTS: dict[str, Variant] = {
    "dense": Variant(
        dense.attend,
        supports=EVERYTHING,
        flops=lambda T, S, N, H: 4 * T * S * N * H,
        memory=lambda T, S, N, H: T * S * N,
        source="Vaswani et al. 2017, https://arxiv.org/abs/1706.03762",
    ),
    "flash": Variant(
        flash.attend,
        supports=EVERYTHING - {"dropout"},
        flops=lambda T, S, N, H: 4 * T * S * N * H,
        memory=lambda T, S, N, H: T * N,
        source="Dao et al. 2022, https://arxiv.org/abs/2205.14135, as jax.nn gives it",
    ),
}


def get(name: str) -> Variant:
    """Returns the variant of that name; ValueError lists the names there are."""
    if name not in VARIANTS:
        raise ValueError(f"attention {name!r} is not one of: {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name]

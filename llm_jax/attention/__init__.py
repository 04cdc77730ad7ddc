"""Attention variants by name: the function, what it supports, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

from llm_jax.attention import dense, flash, local, lsh
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
      flops: (T, S, N, H) -> operations of one sequence's forward pass, nothing masked.
      memory: (T, S, N, H) -> numbers one sequence keeps for the backward pass, beyond
        query, key, value and output.
      source: where it comes from.
      reads: keys of config.model that attend, plan, flops and memory take as keywords.
      plan: (query, random key, **reads) -> an array that attend takes as `plan`: what it decides
        without gradient, kept by a reversible stack for its backward pass. None: nothing.
      shared_qk: queries serve as keys; attend's key is None.
    """

    attend: Callable
    supports: frozenset[str]
    flops: Callable[..., float]
    memory: Callable[..., float]
    source: str
    reads: tuple[str, ...] = ()
    plan: Callable | None = None
    shared_qk: bool = False



def _near(T: int, S: int, window: int | None) -> int:
    """Pairs of a query and a key that attention in blocks of `window` computes."""
    return T * min(S, 2 * (window or S))


def _alike(T: int, lsh_chunk: int = 64, lsh_hashes: int = 1, lsh_buckets: tuple = ()) -> int:
    """Pairs of a query and a key that attention by hashing computes."""
    return T * T if T <= lsh_chunk else lsh_hashes * T * 2 * lsh_chunk


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
        supports=EVERYTHING,
        flops=lambda T, S, N, H: 4 * T * S * N * H,
        memory=lambda T, S, N, H: T * N,
        source="Dao et al. 2022, https://arxiv.org/abs/2205.14135",
    ),
    "local": Variant(
        local.attend,
        supports=EVERYTHING,
        flops=lambda T, S, N, H, window=None: 4 * _near(T, S, window) * N * H,
        memory=lambda T, S, N, H, window=None: _near(T, S, window) * N,
        source="Child et al. 2019, https://arxiv.org/abs/1904.10509; Brown et al. 2020, "
        "https://arxiv.org/abs/2005.14165",
        reads=("window",),
    ),
    "chunked": Variant(
        local.attend_chunked,
        supports=EVERYTHING,
        flops=lambda T, S, N, H, window=None: 4 * _near(T, S, window) * N * H,
        memory=lambda T, S, N, H, window=None: _near(T, S, window) * N,
        source="Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, its local layers",
        reads=("window",),
    ),
    "lsh": Variant(
        lsh.attend,
        supports=frozenset("causal bidirectional packing window dropout grouped".split()),
        flops=lambda T, S, N, H, **lsh: 4 * _alike(T, **lsh) * N * H,
        memory=lambda T, S, N, H, **lsh: _alike(T, **lsh) * N,
        source="Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, section 2",
        reads=("lsh_chunk", "lsh_hashes", "lsh_buckets"),
        plan=lsh.assign,
        shared_qk=True,
    ),
}


def get(name: str) -> Variant:
    """Returns the variant of that name; ValueError lists the names there are."""
    if name not in VARIANTS:
        raise ValueError(f"attention {name!r} is not one of: {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name]

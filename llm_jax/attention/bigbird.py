"""BigBird: block-sparse attention to window, global and random blocks."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.attention import blocks, dense, local
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import cut
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, block: int, random_blocks: int, seen: np.ndarray | None = None,
) -> Array:
    """BigBird's block-sparse attention [B, T, N, H], at a cost linear in T.

    A block of queries attends to its own block of keys, the adjacent ones, the first, the last and
    random_blocks others, different for each head; the first and last blocks of queries attend to
    all keys (Zaheer 2020, section 2 and appendix D). With a causal mask, the last block is an
    ordinary block, and the random blocks are earlier ones. The random choice depends only on the
    number of blocks.

    Args:
      block: block size in tokens; rows are padded to whole blocks.
      seen: [N, C, M] ints, the blocks of keys for each of C blocks of queries, -1: none; replaces
        `choose`.
    """
    T, N = query.shape[1:3]
    C = -(-T // block)
    if not mask.whole or scoring.bias is not None:
        raise ValueError("attention 'bigbird' does not support a bias, prefix or cache")
    if C <= 3:
        return dense.attend(query, key, value, mask, scoring)
    chosen = jnp.asarray(choose(N, C, random_blocks, mask.causal) if seen is None else seen)[None]
    padded = cut(query, block).reshape(len(query), -1, *query.shape[2:])
    y = blocks.attend(padded, key, value, mask, scoring, chosen, block)[0][:, :T]
    return y if mask.causal else _ends(y, block, query, key, value, mask, scoring)


def _ends(y, block, query, key, value, mask, scoring):
    """Replaces the outputs y [B, T, N, H] of the first and last block by full attention."""
    first = local.leading(block, query, key, value, mask, scoring)
    flip = lambda x: None if x is None else x[:, ::-1]
    turned = dataclasses.replace(
        mask, query_segments=flip(mask.query_segments), key_segments=flip(mask.key_segments)
    )
    T = query.shape[1]
    tail = T - (-(-T // block) - 1) * block
    last = local.leading(tail, flip(query), flip(key), flip(value), turned, scoring.apart(1))
    return y.at[:, :block].set(first).at[:, T - tail :].set(flip(last))


@functools.cache
def choose(N: int, C: int, random_blocks: int, causal: bool) -> np.ndarray:
    """Returns [N, C, M] ints: the key blocks of each head and query block, padded with -1."""
    rng = np.random.default_rng(C)
    fixed = 1 + 2 if causal else 2 + 3
    out = np.full((N, C, fixed + random_blocks), -1, np.int32)
    for head in range(N):
        for i in range(C):
            own = {0, i - 1, i} if causal else {0, C - 1, i - 1, i, i + 1}
            own = sorted(j for j in own if 0 <= j < C)
            others = np.setdiff1d(np.arange(i + 1 if causal else C), own)
            drawn = rng.permutation(others)[:random_blocks]
            out[head, i, : len(own) + len(drawn)] = [*own, *sorted(drawn)]
    return out


def _pairs(T, block, random_blocks):
    return T * min(T, (5 + random_blocks) * block)


VARIANT = Variant(
    attend,
    supports=able("causal bidirectional packing grouped softcap sinks dropout weights"),
    flops=lambda T, S, N, H, **reads: 4 * _pairs(T, **reads) * N * H,
    memory=lambda T, S, N, H, **reads: _pairs(T, **reads) * N,
    source="Zaheer et al. 2020, https://arxiv.org/abs/2007.14062",
    reads=("block", "random_blocks"),
)

"""Mixture of block attention (MoBA): each query chooses blocks of keys by their means."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blocks, blockwise
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, block: int, selected_blocks: int,
) -> Array:
    """Returns [B, T, N, H]: softmax over the query's own block and those whose mean key is likest.

    Lu 2025, https://arxiv.org/abs/2502.13189, section 2.2: only full blocks before its own are
    chosen, by q · mean(k), each head for itself, so that no later token has a say. What has few
    blocks is `blockwise.attend`, exactly. A packed row's documents share blocks, see blocks.py.

    Args:
      block: tokens of a block.
      selected_blocks: that a query sees, its own included.
    """
    S, K, H = key.shape[1:]
    if S <= block * selected_blocks:
        return blockwise.attend(query, key, value, mask, scoring)
    mean = blocks.means(key, mask, block)

    def rows(query, start):
        B, t, N, _ = query.shape
        q = jax.lax.stop_gradient(query.astype(jnp.float32)).reshape(B, t, K, N // K, H)
        gates = jnp.einsum("btkgh,bckh->bkgtc", q, mean).reshape(B, N, t, -1)
        seen = blocks.complete(mask, start, t, S, block)[:, None]
        own = (mask.places(start, t) // block)[:, None, :, None] == jnp.arange(gates.shape[-1])
        chosen = blocks.choose(gates, seen, own, selected_blocks)
        return blocks.attend(query, key, value, mask, scoring, chosen, block, start)[0]

    return by_rows(rows, query, blocks.size(block * selected_blocks))


def _flops(T, S, N, H, block, selected_blocks):
    few = S <= block * selected_blocks
    return T * N * H * (4 * S if few else 4 * block * selected_blocks + 2 * -(-S // block))


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped softcap sinks dropout weights"),
    flops=_flops,
    memory=lambda T, S, N, H, **_: T * N,
    source="Lu et al. 2025, https://arxiv.org/abs/2502.13189",
    reads=("block", "selected_blocks"),
)

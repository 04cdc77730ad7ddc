"""Longformer: a sliding window and global tokens, which see all and are seen by all."""

import dataclasses

from jax import Array

from llm_jax.attention import dense, local
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, window: int, global_tokens: int, global_query: Array, global_key: Array, global_value: Array,
) -> Array:
    """Returns [B, T, N, H] as `dense.attend` under mask.window and mask.global_tokens.

    The first global_tokens of a row look through projections of their own (Beltagy 2020,
    section 3.1, "Linear Projections for Global Attention"), which know no rotary positions.
    In a packed row they belong to the first segment and are seen by it alone.

    Args:
      window: keys a query sees back, itself included; as many ahead where it may.
      global_query: [B, T, N, H]; global_key, global_value: [B, S, K, H].
    """
    mask = dataclasses.replace(mask, window=window, global_tokens=global_tokens)
    if not global_tokens:
        return local.attend(query, key, value, mask, scoring)
    if query.shape[1] <= global_tokens:
        return dense.attend(global_query, global_key, global_value, mask, scoring)
    y = local.banded(query, key, value, mask, scoring, window)
    first = local.leading(global_tokens, global_query, global_key, global_value, mask, scoring)
    return y.at[:, :global_tokens].set(first)


def _pairs(T, S, window, global_tokens):
    return local.pairs(T, S, window) + (T + S) * global_tokens


VARIANT = Variant(
    attend,
    supports=able("causal bidirectional packing grouped bias softcap sinks dropout"),
    flops=lambda T, S, N, H, **reads: 4 * _pairs(T, S, **reads) * N * H,
    memory=lambda T, S, N, H, **reads: _pairs(T, S, **reads) * N,
    source="Beltagy et al. 2020, https://arxiv.org/abs/2004.05150",
    reads=("window", "global_tokens"),
    projections=lambda N, K, H, global_tokens, **_: {
        "global_query": Projection((N, H), ("heads", "kv"), bias=0.0),
        "global_key": Projection((K, H), ("kv_heads", "kv"), bias=0.0),
        "global_value": Projection((K, H), ("kv_heads", "kv"), bias=0.0),
    },
)

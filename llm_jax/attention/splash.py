"""Splash attention: JAX's Pallas kernel for exact attention on TPUs, with our masks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import Scoring

LANES = 128  # lanes of a TPU's vector unit: the minimum side of a block
LARGEST = 512


def fits(query: Array, key: Array, mask: Mask, scoring: Scoring) -> bool:
    """Whether the kernel supports these inputs: whole blocks, an aligned mask, no bias."""
    T, S = query.shape[1], key.shape[1]
    structured = mask.whole and not (mask.chunk or mask.stride or mask.global_tokens)
    plain = not scoring.asked & {"bias", "dropout"}
    return structured and plain and T % LANES == S % LANES == 0 and (T == S or not mask.causal)


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring, interpret: bool = False
) -> Array:
    """Computes `dense.attend` [B, T, N, H] for inputs that `fits` accepts.

    interpret: interprets the kernel on any device, for tests.
    """
    scale = scoring.factor(query.shape[-1])
    heads_first = lambda x: x.swapaxes(1, 2)
    query, key, value = map(heads_first, (query * jnp.asarray(scale, query.dtype), key, value))
    T, S, N = query.shape[2], key.shape[2], query.shape[1]
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([_visible(mask, T, S)] * N),
        block_sizes=_blocks(T, S),
        attn_logits_soft_cap=scoring.softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if mask.query_segments is not None:
        segments = kernels.SegmentIds(mask.query_segments, mask.key_segments)
    rows = jax.vmap(kernel, in_axes=(0, 0, 0, segments and 0, None))
    with jax.named_scope("share_{}_of_{}".format(*visited(mask, T, S))):  # of blocks: for plan
        return heads_first(rows(query, key, value, segments, scoring.sinks))


def _visible(mask, T, S):
    if mask.window:
        ahead = 0 if mask.causal else mask.window - 1
        return masks.LocalMask((T, S), (mask.window - 1, ahead), offset=0)
    return masks.CausalMask((T, S)) if mask.causal else masks.FullMask((T, S))


def visited(mask: Mask, T: int, S: int) -> tuple[int, int]:
    """Returns the number of [T, S] score blocks computed and in total: masked ones are skipped."""
    t, s = _side(T), _side(S)
    first = np.arange(0, T, t)
    last = first + t - 1
    low = first - mask.window + 1 if mask.window else np.zeros_like(first)
    high = last if mask.causal else last + mask.window - 1 if mask.window else last * 0 + S - 1
    seen = np.minimum(high, S - 1) // s - np.maximum(low, 0) // s + 1
    return int(seen.sum()), (T // t) * (S // s)


def _side(n: int) -> int:
    """Returns the tile side: the largest that divides n."""
    return next(b for b in (LARGEST, LARGEST // 2, LANES) if n % b == 0)


def _blocks(T, S):
    t, s = _side(T), _side(S)
    return kernels.BlockSizes(
        block_q=t, block_kv=s, block_q_dkv=t, block_kv_dkv=s, block_q_dq=t, block_kv_dq=s
    )

"""Flash attention by the kernel of the platform, without materialising [T, S] weights."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blockwise, platform, splash
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring


def attend(query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN) -> Array:
    """Computes `dense.attend` by cuDNN on GPUs, Pallas on TPUs, and otherwise by `blockwise`.

    cuDNN requires half precision and a head_dim that is a multiple of 8, up to 128, without soft
    cap, sinks or dropout; the TPU kernel requires lengths that are multiples of 128, without bias
    or dropout.
    """
    H = query.shape[-1]
    where = platform.name()
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128
    plain = not scoring.asked - {"bias"} and value.shape[-1] == H
    if where == "gpu" and fits and plain:
        return fused(query, key, value, mask, scoring, "cudnn")
    if where == "tpu" and platform.alone() and splash.fits(query, key, mask, scoring):
        return splash.attend(query, key, value, mask, scoring)
    return blockwise.attend(query, key, value, mask, scoring)


def fused(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring, implementation: str
) -> Array:
    """Computes `attend` by jax.nn.dot_product_attention.

    Causal masks and causal windows are passed as structure; segments, prefix, offset and
    bidirectional windows as a dense mask.
    """
    T, S = query.shape[1], key.shape[1]
    bias = scoring.bias and scoring.bias.block(mask.query_offset, 0, T, 0, S)
    structured = mask.causal and mask.whole and not (mask.chunk or mask.stride)
    structured = structured and not mask.global_tokens
    window = None
    if structured:
        window = None if mask.window is None else (mask.window - 1, 0)
        mask = Mask(mask.query_segments, mask.key_segments)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        None if bias is None else bias.astype(query.dtype),
        mask.dense(T, S),
        scale=scoring.scale,
        is_causal=structured,
        local_window_size=window,
        implementation=implementation,
    )


VARIANT = dataclasses.replace(blockwise.VARIANT, attend=attend)

"""Fused attention where the platform has it, exact and without the [T, S] weights in memory."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import dense
from llm_jax.attention.mask import Mask


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Returns [B, T, N, H] as `dense.attend` defines it: by cuDNN on a GPU, else by `dense`.

    cuDNN takes half precision, heads of a multiple of 8 up to 128, and no dropout.
    """
    H = query.shape[-1]
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128
    dropout = dropout_rate > 0 and dropout_key is not None
    if jax.default_backend() == "gpu" and fits and not dropout:
        return fused(query, key, value, mask, bias, scale, "cudnn")
    return dense.attend(
        query,
        key,
        value,
        mask,
        bias=bias,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
    )


def fused(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask,
    bias: Array | None,
    scale: float | None,
    implementation: str,
) -> Array:
    """Returns `attend` by jax.nn.dot_product_attention.

    A causal mask and its window reach the kernel as structure; segments, a prefix, an offset
    and a window without causality as a dense mask.
    """
    T, S = query.shape[1], key.shape[1]
    structured = mask.causal and mask.query_offset is None and mask.prefix is None
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
        scale=scale,
        is_causal=structured,
        local_window_size=window,
        implementation=implementation,
    )

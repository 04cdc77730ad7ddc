"""The platform's fused attention: cuDNN's on a GPU, else what XLA makes of it."""

import jax
import jax.numpy as jnp
from jax import Array

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
    """Returns [B, T, N, H], as `dense.attend` defines it, without the [T, S] weights.

    A plain causal or windowed mask reaches the kernel as structure, anything else (packing,
    prefix, cache) as a dense mask, which costs [B, T, S] memory but no precision.
    """
    if dropout_key is not None and dropout_rate > 0:
        raise ValueError("attention 'flash' has no dropout: set model.attention=dense")
    T, S = query.shape[1], key.shape[1]
    # cuDNN knows a left window only together with causality.
    structured = mask.query_offset is None and mask.prefix is None
    structured = structured and (mask.causal or mask.window is None)
    extra = mask
    if structured:
        extra = Mask(mask.query_segments, mask.key_segments)
    window = None
    if structured and mask.window is not None:
        window = (mask.window - 1, 0)
    fused = jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        extra.dense(T, S),
        scale=scale,
        is_causal=structured and mask.causal,
        local_window_size=window,
        implementation="cudnn" if fused else "xla",
    )

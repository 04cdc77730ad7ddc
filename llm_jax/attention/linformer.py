"""Linformer: keys and values compressed along the sequence by learned matrices."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import dense
from llm_jax.attention.mask import Mask
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, Weight, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, max_length: int, landmarks: int, compress_key: Array, compress_value: Array,
) -> Array:
    """Returns [B, T, N, H]: softmax(scale q (E k)^T) (F v), E and F [landmarks, S].

    Wang 2020, https://arxiv.org/abs/2006.04768, equation 7, the same E and F for all heads.
    Each compressed key mixes the whole row: no causal mask, and padding is only left out.

    Args:
      compress_key, compress_value: [max_length, landmarks].
    """
    S = key.shape[1]
    if S > max_length:
        raise ValueError(f"attention 'linformer' has learned max_length={max_length}, not {S}")
    if mask.key_segments is not None:
        real = (mask.key_segments > 0)[..., None, None]
        key, value = jnp.where(real, key, 0), jnp.where(real, value, 0)
    mix = lambda x, by: jnp.einsum("bskh,sl->blkh", x, by[:S].astype(x.dtype))
    return dense.attend(query, mix(key, compress_key), mix(value, compress_value), Mask(), scoring)


def _weights(N, K, H, max_length, landmarks):
    init = jax.nn.initializers.normal(max_length**-0.5)
    one = Weight((max_length, landmarks), ("positions", None), init)
    return {"compress_key": one, "compress_value": one}


VARIANT = Variant(
    attend,
    supports=able("bidirectional grouped softcap sinks dropout weights"),
    flops=lambda T, S, N, H, max_length, landmarks: 8 * T * landmarks * N * H,
    memory=lambda T, S, N, H, max_length, landmarks: T * landmarks * N,
    source="Wang et al. 2020, https://arxiv.org/abs/2006.04768",
    reads=("max_length", "landmarks"),
    weights=_weights,
)

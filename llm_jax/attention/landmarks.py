"""Low-rank softmax attention: compressed keys (Linformer) or landmarks (Nystroemformer)."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import dense
from llm_jax.attention.mask import Mask
from llm_jax.attention.recurrent import repeat
from llm_jax.attention.rows import cut
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, Weight, able

STEPS = 6  # iterations for the pseudo-inverse, as in the paper
KERNEL = 33  # width of the convolution over values


def attend_linformer(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, max_length: int, landmarks: int, compress_key: Array, compress_value: Array,
) -> Array:
    """Linformer attention [B, T, N, H]: softmax(scale q (E k)^T) (F v), E and F [landmarks, S].

    Wang 2020, https://arxiv.org/abs/2006.04768, equation 7, with E and F shared by all heads. Each
    compressed key mixes the whole row, so masks are not supported, except for padding.

    Args:
      compress_key, compress_value: [max_length, landmarks].
    """
    S = key.shape[1]
    if S > max_length:
        raise ValueError(f"attention 'linformer' needs length max_length={max_length}, got {S}")
    if mask.key_segments is not None:
        real = (mask.key_segments > 0)[..., None, None]
        key, value = jnp.where(real, key, 0), jnp.where(real, value, 0)
    mix = lambda x, by: jnp.einsum("bskh,sl->blkh", x, by[:S].astype(x.dtype))
    return dense.attend(query, mix(key, compress_key), mix(value, compress_value), Mask(), scoring)


def _compression(N, K, H, max_length, landmarks):
    init = jax.nn.initializers.normal(max_length**-0.5)
    one = Weight((max_length, landmarks), ("positions", None), init)
    return {"compress_key": one, "compress_value": one}


LINFORMER = Variant(
    attend_linformer,
    supports=able("bidirectional grouped softcap sinks dropout weights"),
    flops=lambda T, S, N, H, max_length, landmarks: 8 * T * landmarks * N * H,
    memory=lambda T, S, N, H, max_length, landmarks: T * landmarks * N,
    source="Wang et al. 2020, https://arxiv.org/abs/2006.04768",
    reads=("max_length", "landmarks"),
    weights=_compression,
)


def attend_nystrom(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, landmarks: int, convolution: Array,
) -> Array:
    """Nystroem attention: softmax(q k~) softmax(q~ k~)^+ softmax(q~ k) v + convolution(v).

    Xiong 2021, https://arxiv.org/abs/2102.03902, equations 13 to 15: the landmarks q~ and k~ are
    means over T / landmarks adjacent tokens. With one landmark per token, attention is exact.

    Args:
      convolution: [33, N], kernel over the values of each head, along the row.
    """
    (B, T, N, H), dtype = query.shape, value.dtype
    size = -(-T // min(landmarks, T))
    count = -(-T // size)
    real = jnp.ones((B, T), bool) if mask.key_segments is None else mask.key_segments > 0
    query, key, value = (
        jnp.where(real[..., None, None], repeat(x, N), 0) for x in (query, key, value)
    )

    def weights(number, q, k, real):
        products = jnp.einsum("btnh,bsnh->bnts", q, k)[:, :, None]
        scores = scoring.scores(products, H)
        return scoring.weights(scores, real[:, None, None, None], number)[:, :, 0]

    some = jnp.maximum(cut(real, size).sum(2), 1)[..., None, None]
    few_queries, few_keys = (cut(x, size).sum(2) / some for x in (query, key))
    alive = cut(real, size).any(2)  # [B, count]: landmarks of padding only are masked
    between = weights(0, few_queries, few_keys, alive)
    between = jnp.where(alive[:, None, :, None], between, jnp.eye(count))
    summed = weights(1, few_queries, key, real) @ value.swapaxes(1, 2)
    y = weights(2, query, few_keys, alive) @ (inverse(between) @ summed)
    return (y.swapaxes(1, 2) + _convolve(value, convolution)).astype(dtype)


def inverse(x: Array) -> Array:
    """Approximates the Moore-Penrose inverse of x [..., L, L] by the iteration of section 3.3."""
    eye = jnp.eye(x.shape[-1])
    # A row sums to 1, minus the weight of a sink.
    norms = (x.sum(axis).max(-1)[..., None, None] for axis in (-2, -1))
    z = x.mT / math.prod(norms)
    for _ in range(STEPS):
        xz = x @ z
        z = z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz))) / 4
    return z


def _convolve(value, kernel):
    """Depthwise convolution of values [B, T, N, H] along the row with kernel [33, N]."""
    N = value.shape[2]
    return jax.lax.conv_general_dilated(
        value,
        kernel[:, None, None],  # [33, 1, 1, N]
        window_strides=(1, 1),
        padding=((KERNEL // 2, KERNEL // 2), (0, 0)),
        dimension_numbers=("NHCW", "HWIO", "NHCW"),
        feature_group_count=N,
    )


NYSTROM = Variant(
    attend_nystrom,
    supports=able("bidirectional grouped softcap sinks dropout weights"),
    flops=lambda T, S, N, H, landmarks: (
        N * (2 * T * H * (4 * landmarks + KERNEL) + 4 * landmarks**2 * (H + 2 * STEPS * landmarks))
    ),
    memory=lambda T, S, N, H, landmarks: 3 * T * landmarks * N,
    source="Xiong et al. 2021, https://arxiv.org/abs/2102.03902",
    reads=("landmarks",),
    weights=lambda N, K, H, landmarks: {
        "convolution": Weight((KERNEL, N), (None, "heads"), jax.nn.initializers.normal(0.02)),
    },
)

"""Forgetting attention (FoX): a softmax whose scores decay as the tokens in between say."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows, scores, softmax
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN, *, forget: Array
) -> Array:
    """Returns [B, T, N, H]: softmax(scale q_t k_s + log f_(s+1) + … + log f_t) v.

    f = sigmoid(forget). Lin 2025, https://arxiv.org/abs/2503.02130, which has no other positions.
    With qk_norm and output_gate the layer is the paper's "pro" but for the norm of its output and
    its shift of keys and values.

    Args:
      forget: [B, S, N], of the keys' tokens.
    """
    kept = _sums(jax.nn.log_sigmoid(forget.astype(jnp.float32)), mask.key_segments)

    def rows(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        at = mask.places(start, query.shape[1])[..., None]
        ours = jnp.take_along_axis(kept, at, axis=1, mode="clip")
        z += ours.swapaxes(1, 2)[..., None] - kept.swapaxes(1, 2)[:, :, None]
        return softmax(z, visible, value, scoring, start)

    return by_rows(rows, query)


def _sums(x, segments):
    """[B, S, N] -> cumulative sums that begin anew with each segment [B, S]."""
    if segments is None:
        return jnp.cumsum(x, axis=1)
    new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    def add(a, b):
        return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]

    return jax.lax.associative_scan(add, (x, new[..., None]), axis=1)[0]


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped bias softcap sinks dropout weights"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Lin et al. 2025, https://arxiv.org/abs/2503.02130",
    projections=lambda N, K, H: {"forget": Projection((N,), ("heads",), bias=0.0, of_keys=True)},
)

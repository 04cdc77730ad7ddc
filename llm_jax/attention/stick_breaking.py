"""Stick-breaking attention: from the latest key back, each takes its share of what is left."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows, scores
from llm_jax.attention.scoring import PLAIN, Scoring
from llm_jax.attention.variant import Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN
) -> Array:
    """Returns [B, T, N, H]: sum over s < t of b_ts v_s, times 1 - b_tj of all j in between.

    b = sigmoid(scores); a token does not see itself, and the first has an output of zeros. Tan
    2025, https://arxiv.org/abs/2410.17980, which has no other positions, in logarithms.
    """
    N = query.shape[2]
    value = jnp.repeat(value, N // value.shape[2], axis=2)

    def rows(query, start):
        z, visible = scores(query, key, mask, scoring, start)
        at = mask.places(start, query.shape[1])[:, None, :, None]
        visible = visible & (jnp.arange(key.shape[1]) < at)
        left = jnp.where(visible, jax.nn.log_sigmoid(-z), 0)
        # Of the keys behind each: a shift, so that other segments add no rounding.
        left = jnp.pad(left[..., 1:], ((0, 0),) * 3 + ((0, 1),))
        left = jax.lax.associative_scan(jnp.add, left, reverse=True, axis=3)
        taken = jax.nn.log_sigmoid(z) + left
        weights = scoring.drop(jnp.where(visible, jnp.exp(taken), 0), start)
        return jnp.einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)

    return by_rows(rows, query)


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped bias softcap dropout weights"),
    flops=lambda T, S, N, H: 4 * T * S * N * H,
    memory=lambda T, S, N, H: T * N,
    source="Tan et al. 2025, https://arxiv.org/abs/2410.17980",
)

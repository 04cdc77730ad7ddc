"""DeepSeek sparse attention (DSA): a light indexer chooses the keys that a query sees."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blocks
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import rms_norm
from llm_jax.attention.rows import BLOCK, by_rows, scores, shown
from llm_jax.attention.scoring import HIDDEN, PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, index_query: Array, index_key: Array, index_weight: Array, index_topk: int, index_heads: int,
    index_dim: int,
) -> tuple[Array, Array]:
    """Returns [B, T, N, H], softmax over the index_topk keys of the highest I, and [B, T] losses.

    I_ts = sum_i w_ti relu(q_ti k_s), all heads alike. DeepSeek-AI 2025,
    https://arxiv.org/abs/2512.02556, section 2.1, with an RMSNorm of index keys for its LayerNorm,
    on heads as they are rather than on latents. No gradient goes through the choice: I learns by a
    loss of its own, the divergence of softmax(I) from the heads' mean weights over the chosen keys.

    Args:
      index_query: [B, T, index_heads, index_dim]; index_key: [B, S, 1, index_dim];
        index_weight: [B, T, index_heads].
    """
    B, _, N, H = query.shape
    S, K = key.shape[1:3]
    index_key = rms_norm(index_key[:, :, 0].astype(jnp.float32), None, 1e-6)

    def rows(given, start):
        query, index_query, index_weight = given
        met = jnp.einsum(
            "btid,bsd->btis", index_query, index_key, preferred_element_type=jnp.float32
        )
        share = index_weight.astype(jnp.float32) * (index_dim * index_heads) ** -0.5
        index = jnp.einsum("btis,bti->bts", jax.nn.relu(met), share)
        visible = shown(mask, start, index.shape[1], S)
        index = jnp.where(visible[:, 0], index, HIDDEN)
        if S <= index_topk:
            z, visible = scores(query, key, mask, scoring, start)
            weights = scoring.weights(z[:, :, None], visible[:, :, None], start)
            v = jnp.repeat(value, N // K, axis=2)
            y = jnp.einsum("bnts,bsnh->btnh", weights[:, :, 0].astype(v.dtype), v)
        else:
            index, best = jax.lax.top_k(index, index_topk)
            chosen = jnp.where(index > HIDDEN, best, -1)[:, None]
            y, weights = blocks.attend(query, key, value, mask, scoring, chosen, 1, start)
            weights = weights[..., 0, :]
        target = jax.lax.stop_gradient(weights.mean((1, 2)))
        surprise = jnp.log(jnp.maximum(target, 1e-30)) - jax.nn.log_softmax(index)
        return y, (target * surprise).sum(-1)

    size = BLOCK if S <= index_topk else blocks.size(index_topk)
    return by_rows(rows, (query, index_query, index_weight), size)


def _projections(N, K, H, index_topk, index_heads, index_dim):
    made = lambda *shape, **more: Projection(shape, (None,) * len(shape), detached=True, **more)
    return {
        "index_query": made(index_heads, index_dim, rotary=True),
        "index_key": made(1, index_dim, rotary=True, of_keys=True),
        "index_weight": made(index_heads),
    }


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped softcap"),
    flops=lambda T, S, N, H, index_topk, index_heads, index_dim: (
        4 * T * min(S, index_topk) * N * H + T * S * index_heads * (2 * index_dim + 2)
    ),
    memory=lambda T, S, N, H, **_: T * N,
    source="DeepSeek-AI 2025, https://arxiv.org/abs/2512.02556",
    reads=("index_topk", "index_heads", "index_dim"),
    projections=_projections,
    loss=True,
)

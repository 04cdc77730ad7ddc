"""Learned sparse attention: MoBA and NSA select blocks by their means, DSA keys by an indexer.

Selections have no gradient. Packed documents may share blocks, see blocks.py.
"""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blocks, blockwise, local
from llm_jax.attention.mask import Mask
from llm_jax.attention.norm import rms_norm
from llm_jax.attention.rows import BLOCK, by_rows, scores, shown
from llm_jax.attention.scoring import HIDDEN, PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend_moba(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, block: int, selected_blocks: int,
) -> Array:
    """Mixture of block attention (MoBA) [B, T, N, H]: softmax over the selected blocks of keys.

    Lu 2025, https://arxiv.org/abs/2502.13189, section 2.2: each head selects its own block and the
    full earlier blocks with the highest q · mean(k), so that the selection is causal. Rows with few
    blocks use `blockwise.attend`, which is then exact.

    Args:
      block: block size in tokens.
      selected_blocks: number of blocks per query, its own included.
    """
    S, K, H = key.shape[1:]
    if S <= block * selected_blocks:
        return blockwise.attend(query, key, value, mask, scoring)
    mean = blocks.means(key, mask, block)

    def rows(query, start):
        B, t, N, _ = query.shape
        q = jax.lax.stop_gradient(query.astype(jnp.float32)).reshape(B, t, K, N // K, H)
        gates = jnp.einsum("btkgh,bckh->bkgtc", q, mean).reshape(B, N, t, -1)
        seen = blocks.complete(mask, start, t, S, block)[:, None]
        own = (mask.places(start, t) // block)[:, None, :, None] == jnp.arange(gates.shape[-1])
        chosen = blocks.choose(gates, seen, own, selected_blocks)
        return blocks.attend(query, key, value, mask, scoring, chosen, block, start)[0]

    return by_rows(rows, query, blocks.size(block * selected_blocks))


def _moba_flops(T, S, N, H, block, selected_blocks):
    few = S <= block * selected_blocks
    return T * N * H * (4 * S if few else 4 * block * selected_blocks + 2 * -(-S // block))


MOBA = Variant(
    attend_moba,
    supports=able("causal packing cache grouped softcap sinks dropout weights"),
    flops=_moba_flops,
    memory=lambda T, S, N, H, **_: T * N,
    source="Lu et al. 2025, https://arxiv.org/abs/2502.13189",
    reads=("block", "selected_blocks"),
)


def attend_nsa(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, gates: Array, block: int, selected_blocks: int, window: int,
) -> Array:
    """Native sparse attention: g_1 compressed + g_2 selected + g_3 sliding, g = sigmoid(gates).

    Yuan 2025, https://arxiv.org/abs/2502.11089, section 3. Compressed: softmax over the means of
    the full blocks up to the query, 0 if there are none. Selected: softmax over the keys of the
    blocks with the highest compressed weights, summed over the query heads of a key head, always
    including the first, the query's own and the previous block. Sliding: a window. As in
    flash-linear-attention, blocks do not overlap, compression is the mean instead of a learned
    function, and the branches share keys and values.

    Args:
      gates: [B, T, N, 3].
      block: block size in tokens; selected_blocks: blocks per query, the fixed ones included.
      window: number of keys in the window, the query itself included.
    """
    S, K, H = key.shape[1:]
    mean_key, mean_value = (blocks.means(x, mask, block) for x in (key, value))
    first = None
    if mask.key_segments is not None:
        place = jnp.arange(S)
        new = jnp.pad(jnp.diff(mask.key_segments, axis=1) != 0, ((0, 0), (1, 0)))
        first = jax.lax.cummax(jnp.where(new, place, 0), axis=1) // block

    def rows(query, start):
        B, t, N, _ = query.shape
        q = query.reshape(B, t, K, N // K, H)
        z = scoring.scores(jnp.einsum("btkgh,bckh->bkgtc", q.astype(jnp.float32), mean_key), H)
        seen = blocks.complete(mask, start, t, S, block)[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, z, HIDDEN), axis=-1) * seen
        compressed = jnp.einsum("bkgtc,bckv->btkgv", weights, mean_value)
        places, c = mask.places(start, t), jnp.arange(z.shape[-1])
        begin = 0 if first is None else blocks.at(first, places)[:, None, :, None]
        own = (places // block)[:, None, :, None]
        always = (c == begin) | (c == own) | ((c == own - 1) & (c >= begin))
        best = jax.lax.stop_gradient(weights.sum(2))
        chosen = blocks.choose(best, seen[:, :, 0], always, selected_blocks)
        selected, _ = blocks.attend(query, key, value, mask, scoring, chosen, block, start)
        return compressed.reshape(selected.shape).astype(selected.dtype), selected

    compressed, selected = by_rows(rows, query, blocks.size(block * selected_blocks))
    sliding = local.attend(query, key, value, mask, scoring, window=window)
    gates = jax.nn.sigmoid(gates.astype(jnp.float32)).astype(value.dtype)[..., None]
    return gates[..., 0, :] * compressed + gates[..., 1, :] * selected + gates[..., 2, :] * sliding


def _nsa_flops(T, S, N, H, block, selected_blocks, window):
    pairs = T * (-(-S // block) + min(S, block * selected_blocks)) + local.pairs(T, S, window)
    return 4 * pairs * N * H


NSA = Variant(
    attend_nsa,
    supports=able("causal packing cache grouped softcap weights"),
    flops=_nsa_flops,
    memory=lambda T, S, N, H, block, selected_blocks, window: (
        T * N * H + local.pairs(T, S, window) * N
    ),
    source="Yuan et al. 2025, https://arxiv.org/abs/2502.11089",
    reads=("block", "selected_blocks", "window"),
    projections=lambda N, K, H, **_: {"gates": Projection((N, 3), ("heads", None))},
)


def attend_dsa(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, index_query: Array, index_key: Array, index_weight: Array, index_topk: int, index_heads: int,
    index_dim: int,
) -> tuple[Array, Array]:
    """DeepSeek sparse attention (DSA): softmax over the index_topk keys of the highest scores I.

    I_ts = sum_i w_ti relu(q_ti k_s), shared by all heads (DeepSeek-AI 2025,
    https://arxiv.org/abs/2512.02556, section 2.1). Differs from the paper in an RMSNorm of index
    keys instead of LayerNorm, and in ordinary heads instead of MLA. Returns the output [B, T, N, H]
    and the indexer's losses [B, T]: the KL divergence of softmax(I) from the mean attention weights
    of the heads, over the selected keys.

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


def _indexer(N, K, H, index_topk, index_heads, index_dim):
    made = lambda *shape, **more: Projection(shape, (None,) * len(shape), detached=True, **more)
    return {
        "index_query": made(index_heads, index_dim, rotary=True),
        "index_key": made(1, index_dim, rotary=True, of_keys=True),
        "index_weight": made(index_heads),
    }


DSA = Variant(
    attend_dsa,
    supports=able("causal packing cache grouped softcap"),
    flops=lambda T, S, N, H, index_topk, index_heads, index_dim: (
        4 * T * min(S, index_topk) * N * H + T * S * index_heads * (2 * index_dim + 2)
    ),
    memory=lambda T, S, N, H, **_: T * N,
    source="DeepSeek-AI 2025, https://arxiv.org/abs/2512.02556",
    reads=("index_topk", "index_heads", "index_dim"),
    projections=_indexer,
    loss=True,
)

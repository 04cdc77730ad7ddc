"""Native sparse attention (NSA): compressed blocks, the best of them in full, and a window."""

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.attention import blocks, local
from llm_jax.attention.mask import Mask
from llm_jax.attention.rows import by_rows
from llm_jax.attention.scoring import HIDDEN, PLAIN, Scoring
from llm_jax.attention.variant import Projection, Variant, able


def attend(
    query: Array, key: Array, value: Array, mask: Mask, scoring: Scoring = PLAIN,
    *, gates: Array, block: int, selected_blocks: int, window: int,
) -> Array:
    """Returns [B, T, N, H]: g_1 compressed + g_2 selected + g_3 sliding, g = sigmoid(gates).

    Yuan 2025, https://arxiv.org/abs/2502.11089, section 3. Compressed: softmax over the means of
    full blocks that end by the query, zeros where there is none. Selected: over the keys of the
    blocks that these weights, summed over a key head's queries, find best; the first, the query's
    own and the one before are always among them. Sliding: over a window. As in
    flash-linear-attention, blocks do not overlap, a block is its mean rather than a learned
    function of it, and all three branches share keys and values. A packed row's documents share
    blocks, see blocks.py.

    Args:
      gates: [B, T, N, 3].
      block: tokens of a block; selected_blocks: of a query, those it always has included.
      window: keys a query sees back, itself included.
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


def _flops(T, S, N, H, block, selected_blocks, window):
    pairs = T * (-(-S // block) + min(S, block * selected_blocks)) + local.pairs(T, S, window)
    return 4 * pairs * N * H


VARIANT = Variant(
    attend,
    supports=able("causal packing cache grouped softcap weights"),
    flops=_flops,
    memory=lambda T, S, N, H, block, selected_blocks, window: (
        T * N * H + local.pairs(T, S, window) * N
    ),
    source="Yuan et al. 2025, https://arxiv.org/abs/2502.11089",
    reads=("block", "selected_blocks", "window"),
    projections=lambda N, K, H, **_: {"gates": Projection((N, 3), ("heads", None))},
)

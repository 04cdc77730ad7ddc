"""The decoder: a causal stack, with cross-attention where there is an encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.attention.mask import Mask
from llm_jax.models.embeddings import Embeddings, TokenEmbed
from llm_jax.models.layers import Norm, both_streams
from llm_jax.models.positions import position_bias
from llm_jax.models.stack import Context, Stack


class Decoder(nn.Module):
    """tokens, positions, segment_ids [B, T] -> [B, T, D], each looking only back.

    `encoded` [B, S, D] with `encoded_segments` [B, S] adds cross-attention. With cache_length
    the call continues a sequence whose keys and values are in the 'cache' collection, rows
    standing at `positions` (padding at or beyond it); `encoded` need be given only once then.
    """

    cfg: FrozenConfigDict
    embed: TokenEmbed
    cross: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array | None = None,
        *, encoded: jax.Array | None = None, encoded_segments: jax.Array | None = None,
        prefix: jax.Array | None = None, deterministic: bool = True, cache_length: int = 0,
    ) -> jax.Array:
        cfg, T = self.cfg, tokens.shape[1]
        embed = Embeddings(cfg, self.embed, name="embeddings")
        # Padding stands beyond the cache, where no table has a row.
        within = jnp.minimum(positions, cache_length - 1) if cache_length else positions
        x = embed(tokens, within, deterministic=deterministic)

        offset = positions[:, 0] if cache_length else None
        bias = position_bias(cfg, cache_length or T, bidirectional=False)
        mask = Mask(segment_ids, segment_ids, offset, prefix, causal=True)
        cross_mask = None
        if self.cross:
            ours = jnp.ones_like(tokens) if segment_ids is None else segment_ids
            theirs = encoded_segments
            cross_mask = Mask() if theirs is None else Mask(ours, theirs)
        context = Context(mask, positions, bias, encoded, cross_mask)
        stack = Stack(
            cfg,
            cfg.num_decoder_layers,
            cross=self.cross,
            both_streams=both_streams(cfg),
            deterministic=deterministic,
            cache_length=cache_length,
            name="stack",
        )
        x = stack(x, context)
        x = Norm(cfg, name="final_norm")(x) if cfg.norm_place != "post" else x
        return nn.Dropout(cfg.final_dropout, deterministic=deterministic)(x)

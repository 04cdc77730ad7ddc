"""Encoder and decoder: embeddings, a stack of blocks, a final norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.attention.mask import Mask
from llm_jax.models.embeddings import Embeddings, TokenEmbed
from llm_jax.models.layers import Norm, both_streams
from llm_jax.models.positions import position_bias
from llm_jax.models.stack import Context, Stack


class Transformer(nn.Module):
    """Encoder or decoder: tokens, positions, segment_ids, types [B, T] -> [B, T, D].

    Segment 0 is padding. An encoder is bidirectional, a `decoder` causal, with cross-attention to
    `encoded` [B, S, D] and its `encoded_segments` [B, S] in an encoder-decoder. With cache_length,
    a decoder continues the sequences in the KV cache at `positions` (>= cache_length: padding);
    `encoded` is then needed in the first call only.
    """

    cfg: FrozenConfigDict
    embed: TokenEmbed
    decoder: bool = False

    def setup(self):
        self.embeddings = Embeddings(self.cfg, self.embed)

    def look_up(self, *inputs: jax.Array, deterministic: bool = True) -> jax.Array:
        """Embeds tokens, positions, types [B, T] -> [B, T, E], before projection and blocks."""
        return self.embeddings.look_up(*inputs, deterministic=deterministic)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array | None = None,
        types: jax.Array | None = None,
        *, embeddings: jax.Array | None = None, encoded: jax.Array | None = None,
        encoded_segments: jax.Array | None = None, prefix: jax.Array | None = None,
        deterministic: bool = True, cache_length: int = 0,
    ) -> jax.Array:
        """embeddings [B, T, E]: replaces `look_up`."""
        cfg, T = self.cfg, tokens.shape[1]
        flags = {"deterministic": deterministic}
        # Padding has positions beyond the cache, outside the position table.
        within = jnp.minimum(positions, cache_length - 1) if cache_length else positions
        x = self.embeddings(tokens, within, types, embeddings=embeddings, **flags)
        bias = position_bias(cfg, cache_length or T, bidirectional=not self.decoder)
        offset = positions[:, 0] if cache_length else None
        mask = Mask(segment_ids, segment_ids, offset, prefix, causal=self.decoder)
        depth, cross_mask = cfg.num_layers, Mask()
        both = both_streams(cfg) and (self.decoder or cfg.kind == "encoder")
        if self.decoder:
            depth = cfg.num_decoder_layers
            flags |= {"cross": cfg.kind == "encoder_decoder", "cache_length": cache_length}
        if encoded_segments is not None:
            ours = jnp.ones_like(tokens) if segment_ids is None else segment_ids
            cross_mask = Mask(ours, encoded_segments)
        context = Context(mask, positions, bias, encoded, cross_mask)
        x = Stack(cfg, depth, both_streams=both, **flags, name="stack")(x, context)
        x = Norm(cfg, name="final_norm")(x) if cfg.norm_place != "post" else x
        return nn.Dropout(cfg.final_dropout, deterministic=deterministic)(x)

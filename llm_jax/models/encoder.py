"""The bidirectional stack: tokens to contextual vectors."""

import flax.linen as nn
import jax
from ml_collections import FrozenConfigDict

from llm_jax.attention.mask import Mask
from llm_jax.models.layers import Embeddings, Norm, TokenEmbed, both_streams, position_bias
from llm_jax.models.stack import Context, Stack


class Encoder(nn.Module):
    """tokens, positions, segment_ids, types [B, T] -> [B, T, D]; segment 0 is padding."""

    cfg: FrozenConfigDict
    embed: TokenEmbed

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None = None,
        types: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        cfg, T = self.cfg, tokens.shape[1]
        embed = Embeddings(cfg, self.embed, name="embeddings")
        x = embed(tokens, positions, types, deterministic=deterministic)
        bias = position_bias(cfg, T, bidirectional=True)
        mask = Mask(segment_ids, segment_ids)
        context = Context(mask, positions, bias)
        both = cfg.kind == "encoder" and both_streams(cfg)
        stack = Stack(
            cfg, cfg.num_layers, both_streams=both, deterministic=deterministic, name="stack"
        )
        x = stack(x, context)
        x = Norm(cfg, name="final_norm")(x) if cfg.norm_place == "pre" else x
        return nn.Dropout(cfg.final_dropout, deterministic=deterministic)(x)

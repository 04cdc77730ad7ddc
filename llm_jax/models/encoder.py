"""The bidirectional stack: tokens to contextual vectors."""

import flax.linen as nn
import jax
from ml_collections import FrozenConfigDict

from llm_jax.attention.mask import Mask
from llm_jax.models.embeddings import Embeddings, TokenEmbed
from llm_jax.models.layers import Norm, both_streams
from llm_jax.models.positions import position_bias
from llm_jax.models.stack import Context, Stack


class Encoder(nn.Module):
    """tokens, positions, segment_ids, types [B, T] -> [B, T, D]; segment 0 is padding."""

    cfg: FrozenConfigDict
    embed: TokenEmbed

    def setup(self):
        self.embeddings = Embeddings(self.cfg, self.embed)

    def look_up(self, *inputs: jax.Array, deterministic: bool = True) -> jax.Array:
        """tokens, positions, types [B, T] -> [B, T, E], before any projection and block."""
        return self.embeddings.look_up(*inputs, deterministic=deterministic)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array | None = None,
        types: jax.Array | None = None,
        *, embeddings: jax.Array | None = None, deterministic: bool = True,
    ) -> jax.Array:
        """embeddings [B, T, E]: what `look_up` would give, taken instead of it."""
        cfg, T = self.cfg, tokens.shape[1]
        x = self.embeddings(
            tokens, positions, types, embeddings=embeddings, deterministic=deterministic
        )
        bias = position_bias(cfg, T, bidirectional=True)
        mask = Mask(segment_ids, segment_ids)
        context = Context(mask, positions, bias)
        both = cfg.kind == "encoder" and both_streams(cfg)
        stack = Stack(
            cfg, cfg.num_layers, both_streams=both, deterministic=deterministic, name="stack"
        )
        x = stack(x, context)
        x = Norm(cfg, name="final_norm")(x) if cfg.norm_place != "post" else x
        return nn.Dropout(cfg.final_dropout, deterministic=deterministic)(x)

"""Whole models: `build(cfg)` turns config.model into a Linen module.

Every model maps a batch to `Outputs`: hidden vectors and the matrix that turns them into
logits, so that a loss need never hold the logits of all tokens at once.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.layers import TokenEmbed

__all__ = ["Outputs", "build", "logits", "init_params"]


class Outputs(NamedTuple):
    """What a model returns; logits = hidden @ matrix.T."""

    hidden: jax.Array  # [B, T, D]
    matrix: jax.Array  # [V, D]
    encoded: jax.Array | None = None  # [B, S, D] of an encoder-decoder


def logits(outputs: Outputs) -> jax.Array:
    """[B, T, V] float32, for decoding and tests; training goes through objectives/."""
    hidden, matrix = outputs.hidden, outputs.matrix.astype(outputs.hidden.dtype)
    return jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)


class Model(nn.Module):
    """A decoder, an encoder or both, with the token table and the output matrix."""

    cfg: FrozenConfigDict

    def setup(self):
        cfg = self.cfg
        self.embed = TokenEmbed(cfg)
        if cfg.kind != "decoder":
            self.encoder = Encoder(cfg, self.embed)
        if cfg.kind != "encoder":
            self.decoder = Decoder(cfg, self.embed, cross=cfg.kind == "encoder_decoder")
        if not cfg.tie_embeddings:
            self.output = self.param(
                "output",
                nn.with_logical_partitioning(
                    nn.initializers.normal(cfg.initializer_range), ("vocab", "embed")
                ),
                (cfg.vocab_size, cfg.embed_dim),
            )

    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> Outputs:
        """batch: tokens [B, T], optional positions and segment_ids; encoder_* for the source."""
        tokens = batch["tokens"]
        positions = batch.get("positions", default_positions(tokens))
        segments = batch.get("segment_ids")
        if self.cfg.kind == "encoder":
            return self._outputs(
                self.encoder(tokens, positions, segments, deterministic=deterministic)
            )
        encoded, encoded_segments = None, None
        if self.cfg.kind == "encoder_decoder":
            encoded_segments = batch.get("encoder_segment_ids")
            encoded = self.encode(batch, deterministic=deterministic)
        hidden = self.decoder(
            tokens,
            positions,
            segments,
            encoded=encoded,
            encoded_segments=encoded_segments,
            prefix=batch.get("prefix"),
            deterministic=deterministic,
        )
        return self._outputs(hidden, encoded)

    def encode(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        """encoder_tokens [B, S], optional encoder_positions and encoder_segment_ids -> [B, S, D]."""
        tokens = batch["encoder_tokens"]
        return self.encoder(
            tokens,
            batch.get("encoder_positions", default_positions(tokens)),
            batch.get("encoder_segment_ids"),
            deterministic=deterministic,
        )

    def step(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        *,
        cache_length: int,
        encoded: jax.Array | None = None,
        encoded_segments: jax.Array | None = None,
    ) -> Outputs:
        """Continues cached sequences by tokens [B, T] at positions [B, T]; decoders only."""
        hidden = self.decoder(
            tokens,
            positions,
            encoded=encoded,
            encoded_segments=encoded_segments,
            cache_length=cache_length,
        )
        return self._outputs(hidden)

    def _outputs(self, hidden: jax.Array, encoded: jax.Array | None = None) -> Outputs:
        matrix = self.embed.matrix if self.cfg.tie_embeddings else self.output
        return Outputs(hidden, matrix, encoded)


def default_positions(tokens: jax.Array) -> jax.Array:
    """[B, T] counting from 0 in every row."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def build(cfg: ConfigDict) -> Model:
    """Returns the module for a resolved config.model (see llm_jax.config.resolve)."""
    return Model(FrozenConfigDict(cfg))


def init_params(model: Model, key: jax.Array) -> dict:
    """Returns parameters boxed with their logical axis names; sizes do not depend on T."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, {"tokens": tokens, "encoder_tokens": tokens})["params"]

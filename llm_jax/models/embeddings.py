"""Input embeddings: token, position and type embeddings and their sum."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.models.layers import Dense, Norm, annotate, normal
from llm_jax.models.positions import sinusoids


class TokenEmbed(nn.Module):
    """Token embedding: [B, T] -> [B, T, E]; `matrix` [V, E] is also the tied output matrix."""

    cfg: FrozenConfigDict

    def setup(self):
        cfg = self.cfg
        # If embeddings are multiplied by sqrt(embed_dim), the initial values are divided by it.
        init = normal(cfg, cfg.embed_dim if cfg.scale_embeddings else 1)
        self.matrix = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("vocab", "embed")),
            (cfg.vocab_size, cfg.embedding_dim),
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Each device looks up all tokens in its slice of the embedding dimension, then an
        # all-to-all moves the vectors; gathering the table would move more, also its gradient.
        tokens = annotate(tokens, "lookup_batch", "length")
        x = jnp.take(self.matrix, tokens, axis=0)
        x = annotate(x, "lookup_batch", "length", "embed").astype(self.cfg.dtype)
        x = annotate(x, "batch", "length", "activation_embed")
        return x * math.sqrt(self.cfg.embed_dim) if self.cfg.scale_embeddings else x


class Table(nn.Module):
    """Learned embedding table of `size` rows: indices [B, T] -> [B, T, E]."""

    cfg: FrozenConfigDict
    size: int
    axis: str
    dim: int = 0  # 0: embedding_dim

    @nn.compact
    def __call__(self, indices: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(normal(self.cfg, 1), (self.axis, "embed"))
        table = self.param("embedding", init, (self.size, self.dim or self.cfg.embedding_dim))
        table = annotate(table, self.axis, "activation_embed")
        return jnp.take(table, indices, axis=0).astype(self.cfg.dtype)


class Embeddings(nn.Module):
    """Input embeddings: tokens, positions and types [B, T] -> [B, T, D].

    The sum of token, position (learned, axial or sinusoidal) and type embeddings, with optional
    norm and dropout, then the projection to embed_dim.
    """

    cfg: FrozenConfigDict
    tokens: TokenEmbed

    def setup(self):
        cfg = self.cfg
        if cfg.type_vocab_size:
            self.types = Table(cfg, cfg.type_vocab_size, "types")
        if cfg.positions == "learned":
            self.positions = Table(cfg, cfg.max_length + cfg.position_offset, "positions")
        elif cfg.positions == "axial":
            rows, columns = zip(cfg.axial_shape, cfg.axial_dims, strict=True)
            self.rows = Table(cfg, rows[0], "positions", rows[1])
            self.columns = Table(cfg, columns[0], "positions", columns[1])
        if cfg.embed_norm:
            self.norm = Norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout)
        if cfg.embedding_dim != cfg.embed_dim:
            E, D = (cfg.embedding_dim,), (cfg.embed_dim,)
            self.projection = Dense(cfg, E, D, ("norm", "embed"))

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, types: jax.Array | None = None,
        *, embeddings: jax.Array | None = None, deterministic: bool = True,
    ) -> jax.Array:
        """embeddings [B, T, E]: used instead of `look_up` (of another module)."""
        x = embeddings
        if x is None:
            x = self.look_up(tokens, positions, types, deterministic=deterministic)
        if self.cfg.embedding_dim != self.cfg.embed_dim:
            x = self.projection(x)
        return annotate(x, "batch", "length", "activation_embed")

    def look_up(
        self, tokens: jax.Array, positions: jax.Array, types: jax.Array | None = None,
        *, deterministic: bool = True,
    ) -> jax.Array:
        """[B, T] -> [B, T, E], without the projection."""
        cfg, x = self.cfg, self.tokens(tokens)
        if cfg.type_vocab_size:
            x += self.types(jnp.zeros_like(tokens) if types is None else types)
        if cfg.positions == "learned":
            x += self.positions(positions + cfg.position_offset)
        elif cfg.positions == "axial":
            # Position i * columns + j concatenates the embeddings of row i and column j.
            row, column = jnp.divmod(positions, cfg.axial_shape[1])
            x += jnp.concatenate([self.rows(row), self.columns(column)], axis=-1)
        elif cfg.positions == "sinusoidal":
            x += sinusoids(positions, cfg.embedding_dim).astype(x.dtype)
        x = self.norm(x) if cfg.embed_norm else x
        return self.dropout(x, deterministic=deterministic)

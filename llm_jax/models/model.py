"""The model: maps a batch to hidden vectors and the output matrix.

It does not return logits, so that a loss need not materialise those of all tokens at once.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from llm_jax.models import heads
from llm_jax.models.embeddings import TokenEmbed
from llm_jax.models.layers import both_streams, normal
from llm_jax.models.transformer import Transformer


class Outputs(NamedTuple):
    """Model outputs; logits are l = hidden @ matrix.T + bias, soft-capped as c tanh(l / c).

    heads: float32 outputs of all heads other than "lm" and "mlm", by name: "sequence"
    [B, num_labels], "token" [B, T, num_labels], "span" [B, T, 2], "detection" [B, T] (with
    "replaced" [B, T] bool in ELECTRA pre-training), and "pooled" [B, D] if there is a pooler.
    """

    hidden: jax.Array  # [B, T, D], or [B, P, D] at masked_positions: input of the output matrix
    matrix: jax.Array | None  # [V, D]
    bias: jax.Array | None = None  # [V]
    features: jax.Array | None = None  # [B, T, D], the output of the last block
    encoded: jax.Array | None = None  # [B, S, D], the encoder output of an encoder-decoder
    heads: dict[str, jax.Array] = {}  # noqa: RUF012
    softcap: float | None = None  # c; None: none


def logits(outputs: Outputs) -> jax.Array:
    """Returns logits [B, T, V] in float32, for decoding and tests; objectives/ avoids them."""
    hidden, matrix = outputs.hidden, outputs.matrix.astype(outputs.hidden.dtype)
    scores = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
    scores = scores if outputs.bias is None else scores + outputs.bias
    c = outputs.softcap
    return scores if c is None else c * jnp.tanh(scores / c)


class Model(nn.Module):
    """A decoder, an encoder or an encoder-decoder, with token embedding, output matrix, heads."""

    cfg: FrozenConfigDict
    tokens: TokenEmbed | None = None  # shared with another model

    def setup(self):
        cfg = self.cfg
        self.embed = TokenEmbed(cfg) if self.tokens is None else self.tokens
        if cfg.kind != "decoder":
            self.encoder = Transformer(cfg, self.embed)
        if cfg.kind != "encoder":
            self.decoder = Transformer(cfg, self.embed, decoder=True)
        vocab = lambda init, *axes: nn.with_logical_partitioning(init, ("vocab", *axes))
        heads.check(cfg)
        self.names = heads.names(cfg)
        if heads.speaks(cfg) and not cfg.tie_embeddings:
            init = vocab(normal(cfg, cfg.embed_dim), "embed")
            width = 2 * cfg.embed_dim if both_streams(cfg) else cfg.embedding_dim
            self.output = self.param("output", init, (cfg.vocab_size, width))
        self.biased = "mlm" in self.names or ("lm" in self.names and cfg.output_bias)
        if self.biased:
            zeros = vocab(nn.initializers.zeros)
            self.output_bias = self.param("output_bias", zeros, (cfg.vocab_size,))
        if cfg.pooler:
            self.pooler = heads.Transform(cfg, cfg.pooler_activation, cfg.embed_dim)
        for name in self.names:
            if (make := heads.HEADS[name].make) is not None:
                setattr(self, "transform" if name == "mlm" else name, make(cfg))
        self.head_dropout = nn.Dropout(cfg.head_dropout)

    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> Outputs:
        """Runs the model on a batch.

        batch: tokens [B, T]; optional positions, types [B, T], prefix [B], masked_positions [B, P]
        (computes the masked-LM output there only), encoder_* for the source, and embeddings
        [B, T, E], which replace the token lookup of an encoder. Padding is marked by segment_ids
        (0: padding; other numbers: packed sequences) or attention_mask (0: padding, 1: real, on
        either side); without them there is none.
        """
        inputs = batch["tokens"], positions_of(batch), segments_of(batch)
        if self.cfg.kind == "encoder":
            given = {"types": batch.get("types"), "embeddings": batch.get("embeddings")}
            features = self.encoder(*inputs, **given, deterministic=deterministic)
            first = None if inputs[2] is None else (inputs[2] > 0).argmax(1)
            return self._outputs(features, batch.get("masked_positions"), deterministic, first)
        encoded = None
        if self.cfg.kind == "encoder_decoder":
            encoded = self.encode(batch, deterministic=deterministic)
        features = self.decoder(
            *inputs, encoded=encoded, encoded_segments=segments_of(batch, "encoder_"),
            prefix=batch.get("prefix"), deterministic=deterministic,
        )  # fmt: skip
        # In a decoder, pooled heads read the last token, which attends to all others.
        last = inputs[0].shape[1] - 1 - real(batch)[:, ::-1].argmax(1)
        at = last if self.cfg.kind == "decoder" else None
        outputs = self._outputs(features, deterministic=deterministic, at=at)
        return outputs._replace(encoded=encoded)

    def encode(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        """Runs the encoder on the batch's encoder_* fields: encoder_tokens [B, S] -> [B, S, D]."""
        where = positions_of(batch, "encoder_"), segments_of(batch, "encoder_")
        return self.encoder(batch["encoder_tokens"], *where, deterministic=deterministic)

    def step(
        self, tokens: jax.Array, positions: jax.Array, **cached: jax.Array | int | None
    ) -> Outputs:
        """Decoding step: appends tokens [B, T] at positions [B, T] to the cached sequences.

        Parameters are `models.unstacked`.

        cached: cache_length and, if any, encoded, encoded_segments, prefix.
        """
        return self._outputs(self.decoder(tokens, positions, **cached))

    def _outputs(
        self, features: jax.Array, masked_positions: jax.Array | None = None,
        deterministic: bool = True, at: jax.Array | None = None,
    ) -> Outputs:
        """at: [B], the index of the token that pooled heads read; None: the first."""
        cfg, hidden = self.cfg, features
        matrix = bias = None
        if masked_positions is not None:
            # Only masked positions pass through the output matrix, a small model's largest product.
            hidden = jnp.take_along_axis(hidden, masked_positions[..., None], axis=1)
        if heads.speaks(cfg):
            matrix = self.embed.matrix if cfg.tie_embeddings else self.output
        if "mlm" in self.names:
            hidden = self.transform(hidden)
        if self.biased:
            bias = self.output_bias
        if cfg.scale_output:
            hidden *= cfg.embed_dim**-0.5
        token = features[:, 0] if at is None else features[jnp.arange(len(at)), at]
        pooled = self.pooler(token) if cfg.pooler else token
        results = {"pooled": pooled} if cfg.pooler else {}
        for name in self.names:
            head = heads.HEADS[name]
            if not head.words:
                x = pooled if head.pooled else features
                x = self.head_dropout(x, deterministic=deterministic)
                results[name] = getattr(self, name)(x).astype(jnp.float32)
        cap = cfg.output_softcap or None
        return Outputs(hidden, matrix, bias, features, heads=results, softcap=cap)


def segments_of(batch: dict, side: str = "") -> jax.Array | None:
    """Returns segment ids [B, T], 0 for padding; None if the batch does not mark padding."""
    mask = batch.get(f"{side}segment_ids", batch.get(f"{side}attention_mask"))
    return None if mask is None else jnp.asarray(mask, jnp.int32)


def positions_of(batch: dict, side: str = "") -> jax.Array:
    """Returns positions [B, T] of the batch, by default counted from the first real token."""
    if (given := batch.get(f"{side}positions")) is not None:
        return given
    tokens = batch[f"{side}tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = segments_of(batch, side)
    if segments is None:
        return positions
    return jnp.maximum(positions - (segments > 0).argmax(1, keepdims=True), 0)


def real(batch: dict) -> jax.Array:
    """Returns a mask [B, T]: true for real tokens, false for padding."""
    segments = segments_of(batch)
    return jnp.ones(batch["tokens"].shape, bool) if segments is None else segments > 0

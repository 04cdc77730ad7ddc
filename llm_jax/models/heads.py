"""Output heads: the table HEADS, from which model.head selects one or several."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.functions import plain
from llm_jax.models.layers import Dense, Norm


class Transform(nn.Module):
    """Dense layer with activation, act(x W + b): [..., D] -> [..., width], `then` norm or score.

    With a norm it precedes the masked LM's tied output matrix (BERT, appendix A.1). With a score, a
    projection to one logit, it detects replaced tokens (ELECTRA, 2). Otherwise it is BERT's pooler.
    """

    cfg: FrozenConfigDict
    activation: str
    width: int
    then: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, D, width = self.cfg, (self.cfg.embed_dim,), (self.width,)
        x = plain(self.activation)(Dense(cfg, D, width, ("embed", "norm"), name="dense")(x))
        if self.then == "score":
            return Dense(cfg, width, (), ("embed",), name="score")(x)
        return Norm(cfg, name="norm")(x) if self.then == "norm" else x


def linear(cfg: FrozenConfigDict, count: int, use_bias: bool = True) -> nn.Module:
    """Returns a dense layer [..., D] -> [..., count]."""
    return Dense(cfg, (cfg.embed_dim,), (count,), ("embed", "norm"), use_bias=use_bias)


class Head(NamedTuple):
    """An output head.

    Attributes:
      make: cfg -> module, [..., D] -> logits; None: the head consists of the output matrix alone.
      words: the logits are over the vocabulary, from Outputs.hidden and Outputs.matrix; the logits
        of other heads are in Outputs.heads.
      pooled: reads one vector per sequence [B, D] instead of [B, T, D]: that of the first token of
        an encoder, the last token of a decoder.
      labels: returns model.num_labels logits.
    """

    make: Callable[[FrozenConfigDict], nn.Module] | None
    words: bool = False
    pooled: bool = False
    labels: bool = False


HEADS: dict[str, Head] = {
    "lm": Head(None, words=True),
    "mlm": Head(lambda cfg: Transform(cfg, cfg.activation, cfg.embedding_dim, "norm"), words=True),
    "detection": Head(lambda cfg: Transform(cfg, cfg.activation, cfg.embed_dim, "score")),
    "sequence": Head(  # without a bias in decoders, as in transformers
        lambda cfg: linear(cfg, cfg.num_labels, cfg.kind != "decoder"), pooled=True, labels=True),
    "token": Head(lambda cfg: linear(cfg, cfg.num_labels), labels=True),
    "span": Head(lambda cfg: linear(cfg, 2)),  # start and end (Devlin 2019, 4.2)
}


def names(cfg: ConfigDict) -> tuple[str, ...]:
    """Returns the names in model.head: two for "mlm,sequence", none for "none"."""
    return () if cfg.head == "none" else tuple(cfg.head.split(","))


def speaks(cfg: ConfigDict) -> bool:
    """Returns whether a model has logits over the vocabulary, for generation or mask filling."""
    return any(HEADS[name].words for name in names(cfg))


def check(cfg: ConfigDict) -> None:
    """Validates model.head.

    Raises:
      ValueError: an unknown head, heads that exclude each other, or no model.num_labels.
    """
    for name in names(cfg):
        if name not in HEADS:
            raise ValueError(f"model.head={cfg.head!r}: {name!r} is not one of {', '.join(HEADS)}, "
                             "none; separate several by commas")
        if HEADS[name].labels and cfg.num_labels < 1:
            raise ValueError(f"model.num_labels={cfg.num_labels}: must be at least 1 for "
                             f"model.head={cfg.head!r}")
    if len(set(names(cfg))) < len(names(cfg)) or sum(HEADS[n].words for n in names(cfg)) > 1:
        raise ValueError(f"model.head={cfg.head!r}: names must differ, and include only one of "
                         f"{' and '.join(name for name, head in HEADS.items() if head.words)}")

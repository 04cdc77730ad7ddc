"""Output heads: the table HEADS, of which model.head names one or several."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict, FrozenConfigDict

from llm_jax.models.functions import plain
from llm_jax.models.layers import Dense, Norm


class Transform(nn.Module):
    """act(x W + b), [..., D] -> [..., width]; `then` norm: a norm of it; score: a number of it.

    With a norm it stands before the masked LM's tied output matrix (BERT, appendix A.1), with a
    score it is the logit of a token having been replaced (ELECTRA, 2), else BERT's pooler.
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
      make: cfg -> its module, [..., D] -> logits; None: the output matrix is all it has.
      words: its logits are of the vocabulary, through Outputs.hidden and matrix; those of others
        are in Outputs.heads under its name.
      pooled: it reads a sequence's pooled vector [B, D], not each token's [B, T, D]: of an encoder
        the first token's, of a decoder the last's.
      labels: it has model.num_labels logits.
    """

    make: Callable[[FrozenConfigDict], nn.Module] | None
    words: bool = False
    pooled: bool = False
    labels: bool = False


HEADS: dict[str, Head] = {
    "lm": Head(None, words=True),
    "mlm": Head(lambda cfg: Transform(cfg, cfg.activation, cfg.embedding_dim, "norm"), words=True),
    "detection": Head(lambda cfg: Transform(cfg, cfg.activation, cfg.embed_dim, "score")),
    "sequence": Head(  # a decoder's has no bias, as in transformers
        lambda cfg: linear(cfg, cfg.num_labels, cfg.kind != "decoder"), pooled=True, labels=True),
    "token": Head(lambda cfg: linear(cfg, cfg.num_labels), labels=True),
    "span": Head(lambda cfg: linear(cfg, 2)),  # start and end (Devlin 2019, 4.2)
}


def names(cfg: ConfigDict) -> tuple[str, ...]:
    """Returns the heads that model.head names: "mlm,sequence" is two, "none" is none."""
    return () if cfg.head == "none" else tuple(cfg.head.split(","))


def speaks(cfg: ConfigDict) -> bool:
    """Whether a model has logits of the vocabulary, to sample words or fill gaps with."""
    return any(HEADS[name].words for name in names(cfg))


def check(cfg: ConfigDict) -> None:
    """Refuses heads that there are not, that exclude each other, or that lack model.num_labels.

    Raises:
      ValueError: naming the key, its value and what is allowed.
    """
    for name in names(cfg):
        if name not in HEADS:
            raise ValueError(f"model.head={cfg.head!r}: {name!r} is not one of {', '.join(HEADS)} "
                             "or none; several are separated by commas")
        if HEADS[name].labels and cfg.num_labels < 1:
            raise ValueError(f"model.num_labels={cfg.num_labels}: model.head={cfg.head!r} needs at "
                             "least 1")
    if len(set(names(cfg))) < len(names(cfg)) or sum(HEADS[n].words for n in names(cfg)) > 1:
        raise ValueError(f"model.head={cfg.head!r}: one of a name, and only one of "
                         f"{' and '.join(name for name, head in HEADS.items() if head.words)}")

"""The record of an objective: examples, loss, and what it needs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data import pipeline, sources
from llm_jax.data.examples import Examples, Record
from llm_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective: its examples, its loss, what it needs, and what it predicts.

    Attributes:
      name: objective.name.
      examples: the class that makes them of documents, and answers and scores of predictions;
        called with (tokenizer, config).
      weights: batch -> {term: scalar}, how much each term's mean counts over (tokens, sentences).
      losses: (outputs, batch, config.objective) -> ({term: sum}, {metric: (sum, term)}), the
        metrics being means over the weight of the term that they name; one is called 'loss'.
      kinds: values of model.kind that will do, the usual one first.
      heads: those that model.head must name, others beside them allowed.
      needs: other keys of the config -> values that will do, the usual one first.
      refuse: raises ConfigError for what cannot be said so.
      resolve: (config, training documents) fills in what the config leaves to them, as labels.
      held_out: (config, split, its documents) refuses or warns of what training does not have.
      predict: (outputs, batch) -> {name: [B, …]}, of each row what `examples.answer` needs; None:
        it has no answers and no scores but the means of its metrics.
      classes: `predict` has logits of classes, [B, C].
      reference: records have the log-probabilities of the model that training began with.
      writes: its answers are texts, written behind what `examples.ask` gives.
      prompt: (text, config.objective) -> the text that the model reads at inference.
      prefix: a prompt is seen in both directions.
    """

    name: str
    examples: type[Examples]
    weights: Callable[[dict], dict]
    losses: Callable[[Any, dict, ConfigDict], tuple[dict, dict]]
    kinds: tuple[str, ...]
    heads: tuple[str, ...]
    needs: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    refuse: Callable[[ConfigDict], None] = lambda config: None
    resolve: Callable[[ConfigDict, Sequence[Record]], None] = lambda config, documents: None
    held_out: Callable[[ConfigDict, str, Sequence[Record]], None] = lambda config, split, docs: None
    predict: Callable[[Any, dict], dict] | None = None
    prompt: Callable[[str, ConfigDict], str] = lambda text, cfg: text
    prefix: bool = False
    writes: bool = False
    reference: bool = False
    classes: bool = False

    def check(self, config: ConfigDict) -> None:
        """Raises ConfigError where the config lacks what this objective needs, with the fix."""
        needs = {"model.head": (",".join(self.heads),), "model.kind": self.kinds, **self.needs}
        if set(self.heads) <= set(config.model.head.split(",")):
            needs.pop("model.head")
        for key, allowed in needs.items():
            room, _, last = key.partition(".")
            if config[room][last] not in allowed:
                raise ConfigError(f"{key}={config[room][last]!r}: objective.name={self.name!r} "
                                  f"needs {' or '.join(map(repr, allowed))}; set "
                                  f"{key}={allowed[0]}, or choose another objective")
        self.refuse(config)

    def splits(self, config: ConfigDict) -> dict[str, Sequence[Record]]:
        """Returns the documents of train, validation and test, of a config that is checked first.

        Raises:
          ConfigError: see `check` and data.sources.splits.
        """
        self.check(config)
        documents = sources.splits(config, self.examples.columns(config), self.examples.parts)
        self.resolve(config, documents["train"])
        for split in ("validation", "test"):
            self.held_out(config, split, documents[split])
        return documents

    def split(self, config: ConfigDict, name: str) -> Sequence[Record]:
        """Returns the documents of one of the splits of a run, whose config is filled in."""
        self.check(config)
        documents = sources.split(config, name, self.examples.columns(config), self.examples.parts)
        if name != "train":
            self.held_out(config, name, documents)
        return documents

    def build_tokenizer(self, config: ConfigDict, documents: Sequence[Record]) -> Tokenizer:
        """Trains or opens the config's tokenizer, with the special tokens that are needed."""
        return pipeline.build_tokenizer(config, documents, self.examples.specials(config))


def rows(batch: dict) -> Array:
    """[B] float32: 1 for a row, 0 for one that only fills up a batch."""
    return models.real(batch).any(1).astype(jnp.float32)


def count_rows(batch: dict) -> dict[str, Array]:
    """`weights` of an objective whose terms and metrics are means over rows."""
    return {"rows": rows(batch).sum()}


def sums(each: Mapping[str, Array], weight: Array, term: str = "rows") -> dict:
    """Metrics of `losses`, from each one's values of rows or tokens and their weights."""
    return {name: ((x * weight).sum(), term) for name, x in each.items()}

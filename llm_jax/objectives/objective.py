"""`Objective`: examples, loss, requirements and predictions of a training objective."""

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
    """A training objective.

    Attributes:
      name: objective.name.
      examples: class that builds examples from documents, and answers and scores from predictions;
        called with (tokenizer, config).
      weights: batch -> {term: scalar}, the normaliser of each term (tokens, sentences).
      losses: (outputs, batch, config.objective) -> ({term: sum}, {metric: (sum, term)}); a metric
        is normalised by the weight of its term; one is called 'loss'.
      kinds: supported values of model.kind, the default first.
      heads: heads that model.head must include.
      needs: other config keys -> supported values, the default first.
      refuse: raises ConfigError for further conflicts.
      resolve: (config, training documents) fills in config values from the documents, as labels.
      held_out: (config, split, its documents) checks a held-out set against the training set.
      predict: (outputs, batch) -> {name: [B, …]}, the input of `examples.answer` per row; None:
        no predictions, and no scores except the mean metrics.
      classes: `predict` returns class logits [B, C].
      reference: records need log-probabilities of the initial model.
      writes: answers are texts, generated from the prompts of `examples.ask`.
      prompt: (text, config.objective) -> the model input at inference.
      prefix: prompts are bidirectional.
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
        """Raises ConfigError if the config does not meet the requirements, with the fix."""
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
        """Checks the config, and returns the documents of train, validation and test.

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
        """Returns the documents of a split, for the completed config of a run."""
        self.check(config)
        documents = sources.split(config, name, self.examples.columns(config), self.examples.parts)
        if name != "train":
            self.held_out(config, name, documents)
        return documents

    def build_tokenizer(self, config: ConfigDict, documents: Sequence[Record]) -> Tokenizer:
        """Trains or opens the config's tokenizer, with the required special tokens."""
        return pipeline.build_tokenizer(config, documents, self.examples.specials(config))


def rows(batch: dict) -> Array:
    """Returns [B] float32: 1 for real rows, 0 for padding rows."""
    return models.real(batch).any(1).astype(jnp.float32)


def count_rows(batch: dict) -> dict[str, Array]:
    """`weights` for objectives whose terms and metrics are means over rows."""
    return {"rows": rows(batch).sum()}


def sums(each: Mapping[str, Array], weight: Array, term: str = "rows") -> dict:
    """Returns the metrics of `losses` from values per row or token and their weights."""
    return {name: ((x * weight).sum(), term) for name, x in each.items()}

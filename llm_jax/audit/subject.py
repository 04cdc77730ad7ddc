"""The subject of an audit: a run's model, its data and the options."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.data import fields, pipeline
from llm_jax.data.examples import Record
from llm_jax.decode.score import log_likelihoods
from llm_jax.library import Pretrained
from llm_jax.train.predict import answerer
from llm_jax.train.run import load_params


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
      examples: maximum documents, texts or trials per measure.
      data: further files to measure the loss on.
      canaries: texts planted in the training data; their digits are the secret.
      watts: power per device; 0: unknown, no energy is reported.
      grid: kg of CO2e per kWh; 0: unknown.
    """

    examples: int = 128
    data: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()
    watts: float = 0.0
    grid: float = 0.0


class Subject:
    """A run under audit: `lm` (model, params, tokenizer, config) and its documents."""

    def __init__(self, workdir: str | Path, step: int | str | None = None,
                 options: Options = Options()):  # noqa: B008
        self.workdir, self.options = Path(workdir), options
        self.setup, tokenizer, params, self.step = load_params(workdir, step)
        self.config, self.objective = self.setup.config, self.setup.objective
        self.lm = Pretrained(self.config, self.setup.model, params, tokenizer)

    @property
    def kind(self) -> str:
        """Kind of subject: "words" for a decoder LM, "classes" for a classifier, or ""."""
        if self.objective.classes:
            return "" if self.config.data.pair_column else "classes"
        decoder = self.config.model.kind == "decoder" and not self.objective.reference
        return "words" if decoder and models.heads.speaks(self.config.model) else ""

    def documents(self, split: str, config: ConfigDict | None = None) -> list[Record]:
        """Returns a fixed random sample of a split, in order."""
        found = self.objective.split(config or self.config, split)
        if not len(found):
            raise ConfigError(f"audit: the run has no {split} documents")
        count = min(len(found), self.options.examples)
        places = np.random.default_rng(0).choice(len(found), count, replace=False)
        return [found[int(i)] for i in np.sort(places)]

    def texts(self, split: str = "validation") -> list[str]:
        """Returns the text of each of `documents`."""
        return ["\n".join(fields.texts(record)) for record in self.documents(split)]

    def batches(self, documents: Sequence[Record]) -> Iterator[dict[str, np.ndarray]]:
        """Yields evaluation batches of the documents."""
        yield from pipeline.eval_batches(self._examples, documents)

    def row_losses(self, documents: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the loss sum and weight (tokens, or 1 for a classifier) of each row [n]."""
        parts = [self._row_losses(self.lm.params, batch) for batch in self.batches(documents)]
        sums, weights = (np.concatenate(x).astype(np.float64) for x in zip(*parts, strict=True))
        return sums[weights > 0], weights[weights > 0]

    @functools.cached_property
    def _row_losses(self) -> Any:
        objective, model, cfg = self.objective, self.lm.model, self.config.objective

        def one(params, row):
            row = jax.tree.map(lambda x: x[None], row)
            outputs = model.apply({"params": params}, row)
            total, term = objective.losses(outputs, row, cfg)[1]["loss"]
            return total, objective.weights(row)[term]

        return jax.jit(lambda params, batch: jax.lax.map(lambda row: one(params, row), batch))

    def log_likelihoods(
        self, texts: Sequence[str | Sequence[int]], starts: Sequence[int] | None = None
    ) -> np.ndarray:
        """Returns the log-probability of each text, or row of ids, from token `starts` on."""
        read = lambda x: self.lm.tokenizer.encode(x) if isinstance(x, str) else x
        rows = [[self.lm.tokenizer.bos_id, *map(int, read(text))] for text in texts]
        starts = [1] * len(rows) if starts is None else [start + 1 for start in starts]
        more = -len(rows) % (size := self.config.data.batch_size)  # batches of one size
        rows, starts = rows + rows[-1:] * more, starts + starts[-1:] * more
        found = log_likelihoods(self.lm.model, self.lm.params, rows, starts, batch_size=size)
        return np.array([total for total, _ in found[: len(texts)]])

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Returns a classifier's probabilities [n, labels] for texts, truncated if too long."""
        answers = self._answer(self.lm.params, [{"text": text} for text in texts])
        return np.array([list(answer["probabilities"].values()) for answer in answers])

    def gold(self, records: Sequence[Record]) -> np.ndarray:
        """Returns the label index of each record."""
        return np.array([self._examples.target(record) for record in records])

    @functools.cached_property
    def _examples(self) -> Any:
        return self.objective.examples(self.lm.tokenizer, self.config)

    @functools.cached_property
    def _answer(self) -> Any:
        return answerer(self.lm.model, self.objective, self._examples)


def needs(*kinds: str, hidden: bool = False):
    """Returns `Limit.lacks` for measures of these kinds; hidden: they need hidden states."""
    what = {"words": "a decoder language model", "classes": "a classifier of single texts"}

    def lacks(subject: Subject) -> str:
        wanted = " or ".join(what[kind] for kind in kinds)
        name = subject.objective.name
        if subject.kind not in kinds:
            return f"needs {wanted}, not objective.name={name!r}"
        reversible = hidden and subject.config.model.reversible
        return "model.reversible=True does not store hidden states" if reversible else ""

    return lacks

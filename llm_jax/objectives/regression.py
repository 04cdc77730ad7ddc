"""Regression: a number of a text, or of a pair of texts (as STS-B; Devlin 2019, 4.1)."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from llm_jax.config import ConfigError
from llm_jax.objectives import classification, scores
from llm_jax.objectives.labels import CHECKED
from llm_jax.objectives.objective import rows, sums


class Regression(classification.Classification):
    """As Classification, with a number for the label: score in the answer."""

    def target(self, record):
        return number(record, self.config)

    def answer(self, record, rows):
        return {"score": float(rows[0]["value"])}

    def score(self, records, answers):
        return scores.correlation([*map(self.target, records)], [x["score"] for x in answers])


def number(record, config):
    """Returns a record's label, float32; ConfigError where it is no finite number."""
    try:
        value = np.float32(record["label"])
    except ValueError:
        value = np.float32("nan")
    if not np.isfinite(value):
        raise ConfigError(f"data.label_column: {record['label']!r} is no number, which "
                          f"objective.name={config.objective.name!r} learns")
    return value


def check(config, documents):
    """Refuses labels that are no numbers."""
    for record in itertools.islice(documents, CHECKED):
        number(record, config)


def resolve(config, documents):
    """Fills in model.num_labels; there are no names."""
    check(config, documents)
    if config.model.num_labels not in (0, 1):
        raise ConfigError(f"model.num_labels={config.model.num_labels}: regression has 1 number")
    config.model.num_labels = 1


def losses(outputs, batch, cfg):
    """Squared error of heads.sequence [B, 1] against label [B]."""
    squares = jnp.square(outputs.heads["sequence"][:, 0] - batch["label"])
    metrics = sums({"loss": squares}, rows(batch))
    return {"rows": metrics["loss"][0]}, metrics


OBJECTIVE = dataclasses.replace(
    classification.OBJECTIVE,
    name="regression",
    examples=Regression,
    losses=losses,
    resolve=resolve,
    held_out=lambda config, split, documents: check(config, documents),  # any number may come
    predict=lambda outputs, batch: {"value": outputs.heads["sequence"][:, 0]},
    classes=False,
)

"""Sequence classification and regression of a text or a pair of texts (Devlin 2019, 4.1)."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.config import ConfigError
from llm_jax.data.examples import Examples, joined
from llm_jax.objectives import groups, labels, scores
from llm_jax.objectives.objective import Objective, count_rows, rows, sums


class Classification(Examples):
    """Examples [CLS] text [SEP] or [CLS] text [SEP] pair [SEP], with a label index in data.labels.

    tokens, types [T] (0 up to the first [SEP], 1 after it), label, and with data.group_column the
    index of the group in objective.groups. If they are too long for a row, the longer text is
    truncated.
    """

    reads = ("text", "pair", "label", "group")
    fields = ("tokens", "types")
    cut = False
    gold = ("label", "group")
    augments = ("text", "pair")

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config)
        self.ids = labels.numbered(config.data.labels)
        self.groups = labels.numbered(config.objective.groups)
        self.scalars = tuple(name for name in self.columns(config) if name in self.gold)

    def target(self, record):
        """Returns the target of the head for a record."""
        return labels.place(self.ids, record["label"], self.config, "label")

    def group(self, record):
        """Returns the index of a record's group."""
        return labels.place(self.groups, record["group"], self.config, "group")

    def example(self, piece, rng, elsewhere):
        tokenizer, cfg = self.tokenizer, self.config.model
        before, behind = tokenizer.around(cfg.kind)
        texts = [tokenizer.encode(piece[field]) for field in ("text", "pair") if field in piece]
        between = tokenizer.between() if len(texts) == 2 else []
        room = cfg.max_length - len(before) - len(between) - len(behind)
        first, *second = shortened(texts, room)
        parts = [joined(before, first, between), joined(*second, behind)]
        types = np.arange(2).repeat([*map(len, parts)]) if second else np.zeros(cfg.max_length)
        tokens = np.concatenate(parts).astype(np.int32)
        fields = {"tokens": tokens, "types": types[: len(tokens)].astype(int)}
        fields = {name: fields[name] for name in self.lengths(self.config)}
        number = {"label": self.target, "group": self.group}
        return fields | {name: np.array([number[name](piece) if name in piece else 0])
                         for name in self.scalars}  # fmt: skip

    def answer(self, record, rows):
        """{label, probabilities: {label: …}}."""
        odds = np.exp(rows[0]["logits"] - rows[0]["logits"].max())
        names = self.config.data.labels
        shares = dict(zip(names, (odds / odds.sum()).tolist(), strict=True))
        return {"label": names[int(odds.argmax())], "probabilities": shares}

    def score(self, records, answers):
        gold, guess = ([*map(self.target, x)] for x in (records, answers))
        found = scores.classes(scores.confusion(gold, guess, len(self.config.data.labels)))
        if "group" in self.scalars:  # Sagawa 2020, section 3
            right, group = np.equal(gold, guess), np.array([x["group"] for x in records])
            each = [right[group == name].mean() for name in {*group}]
            found["worst_group_accuracy"] = float(min(each))
        return found


def shortened(texts, room):
    """Truncates one or two texts to `room` tokens in total, the longer one first."""
    if len(texts) == 1:
        return [texts[0][:room]]
    a, b = map(len, texts)
    a = min(a, max(room - b, (room + 1) // 2))
    return [texts[0][:a], texts[1][: room - a]]


def resolve(config, documents):
    """Fills in data.labels, model.num_labels, objective.groups and objective.class_weights.

    "balanced" weights are n / (number of labels * n of the label), as in scikit-learn.
    """
    if not config.data.labels:
        pairs = (((doc["text"], doc.get("pair")), doc["label"]) for doc in documents)
        labels.check_columns(config, pairs, "text", "label")
    labels.resolve(config, (doc["label"] for doc in documents), "label")
    names = config.data.labels
    given = config.objective.class_weights
    if given == ("balanced",):
        ids = labels.numbered(names)
        counts = np.bincount([ids[doc["label"]] for doc in documents], minlength=len(names))
        given = tuple((len(documents) / len(names) / np.maximum(counts, 1)).tolist())
    if given and len(given) != len(names):
        raise ConfigError(f"objective.class_weights={given}: must have one weight for each of the "
                          f"{len(names)} data.labels: {labels.some(names)}; or be balanced")
    config.objective.class_weights = given
    if config.data.group_column and not config.objective.groups:
        config.objective.groups = tuple(sorted({doc["group"] for doc in documents}))


def held_out(config, split, documents):
    """Raises ConfigError for labels that training does not have."""
    for name, count in labels.unknown(config, (doc["label"] for doc in documents)).items():
        have = "rows have" if count > 1 else "row has"
        raise ConfigError(f"data.{split}: {count} {have} the label {labels.some([name])!r}, "
                          f"which is not in data.labels ({labels.some(config.data.labels)}), "
                          "those of the training set; remove these rows, or add some with that "
                          "label to data.train")


def losses(outputs, batch, cfg):
    """Class-weighted cross-entropy or focal loss of heads.sequence [B, C] against label [B].

    Group DRO's if the batch has weights of groups; see groups.weighted.
    """
    logits, label = outputs.heads["sequence"], batch["label"]
    each = {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
        "accuracy": logits.argmax(-1) == label,
    }
    weight = jnp.array(cfg.class_weights or (1.0,) * logits.shape[-1])[label]
    total = labels.cross_entropy(logits, label, cfg) * weight * rows(batch)
    metrics = sums(each, rows(batch))
    if groups.LOG_Q in batch:
        total, more = groups.weighted(total, batch, cfg)
        metrics |= more
    return {"rows": total.sum()}, metrics


OBJECTIVE = Objective(
    name="classification",
    examples=Classification,
    weights=count_rows,
    losses=losses,
    kinds=("encoder", "decoder"),
    heads=("sequence",),
    needs={"data.packing": ("none",)},  # the head reads a row's first token, or the last
    refuse=groups.refuse,
    resolve=resolve,
    held_out=held_out,
    predict=lambda outputs, batch: {"logits": outputs.heads["sequence"]},
    classes=True,
)


class Regression(Classification):
    """Regression: as Classification, with a number as the label (STS-B); predicts a score."""

    reads = ("text", "pair", "label")

    def target(self, record):
        return number(record, self.config)

    def answer(self, record, rows):
        return {"score": float(rows[0]["value"])}

    def score(self, records, answers):
        return scores.correlation([*map(self.target, records)], [x["score"] for x in answers])


def number(record, config):
    """Returns a record's label as float32; ConfigError if it is not a finite number."""
    try:
        value = np.float32(record["label"])
    except ValueError:
        value = np.float32("nan")
    if not np.isfinite(value):
        swapped = "; data.text_column holds numbers: are the two swapped?"
        raise ConfigError(f"data.label_column: {record['label']!r} is not a number, as "
                          f"objective.name={config.objective.name!r} requires"
                          + swapped * bool(labels.NUMBER.fullmatch(record.get("text", ""))))
    return value


def check(config, documents):
    for record in itertools.islice(documents, labels.CHECKED):
        number(record, config)


def resolve_number(config, documents):
    """Fills in model.num_labels."""
    check(config, documents)
    if config.model.num_labels not in (0, 1):
        raise ConfigError(f"model.num_labels={config.model.num_labels}: must be 1 for regression")
    config.model.num_labels = 1


def squared_errors(outputs, batch, cfg):
    """Squared error of heads.sequence [B, 1] against label [B]."""
    squares = jnp.square(outputs.heads["sequence"][:, 0] - batch["label"])
    metrics = sums({"loss": squares}, rows(batch))
    return {"rows": metrics["loss"][0]}, metrics


REGRESSION = dataclasses.replace(
    OBJECTIVE,
    name="regression",
    examples=Regression,
    losses=squared_errors,
    resolve=resolve_number,
    held_out=lambda config, split, documents: check(config, documents),  # any number is allowed
    predict=lambda outputs, batch: {"value": outputs.heads["sequence"][:, 0]},
    classes=False,
)

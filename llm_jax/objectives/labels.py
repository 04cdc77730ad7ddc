"""Label names of a training set, and their indices."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from llm_jax.config import ConfigError

log = logging.getLogger(__name__)
NUMBER = re.compile(r"[-+]?\d*\.?\d+")
SHOWN = 20  # maximum names in a message
CHECKED = 100_000  # labels of the training set that are checked before training


def some(names: Sequence[str]) -> str:
    """Formats the first names, and their number, for a message."""
    short = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:SHOWN]]
    return ", ".join([*short, *[f"… ({len(names)})"] * (len(names) > SHOWN)])


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Returns {label: index}; labels of an imported model also have their number as a key."""
    ids = {name: i for i, name in enumerate(names)}
    return ids if any(map(str.isdigit, names)) else ids | {str(i): i for i in range(len(names))}


def place(ids: dict[str, int], name: str, config: ConfigDict, key: str) -> int:
    """Returns the index of a label or group; ConfigError if the training set does not have it."""
    if name not in ids and key == "group":
        raise ConfigError(f"data.group_column: {name!r} is not in objective.groups "
                          f"({some(config.objective.groups)}), those of the training set")
    if name not in ids:
        raise ConfigError(f"data.{key}_column: {name!r} is not in data.labels "
                          f"({some(config.data.labels)}), those of the training set or of "
                          "init_from; set data.labels to use others, with a new head")
    return ids[name]


def unknown(config: ConfigDict, named: Iterable[str]) -> Counter[str]:
    """Returns the counts of labels of a held-out set that are not in data.labels."""
    ids = numbered(config.data.labels)
    return Counter(name for name in itertools.islice(named, CHECKED) if name not in ids)


def cross_entropy(logits: jax.Array, label: jax.Array, cfg: ConfigDict) -> jax.Array:
    """Focal loss or cross-entropy of logits [..., C] against label [...], with label smoothing.

    -sum_c target_c (1 - p_c)^focal_gamma log p_c (Lin 2017, equation 4).
    """
    wanted = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), cfg.label_smoothing)
    log_p = jax.nn.log_softmax(logits)
    hard = jnp.maximum(-jnp.expm1(log_p), 1e-7) ** cfg.focal_gamma  # not differentiable at 0
    return -(wanted * hard * log_p).sum(-1)


def check_columns(
    config: ConfigDict, pairs: Iterable[tuple[Any, Any]], text: str, label: str
) -> None:
    """Raises ConfigError if (text, label) pairs have more different labels than texts: swapped."""
    seen = [*itertools.islice(pairs, CHECKED)]
    texts, names = (len({pair[i] for pair in seen}) for i in (0, 1))
    if names > max(texts, 2):
        a, b = (config.data[f"{key}_column"] for key in (text, label))
        raise ConfigError(f"data.{label}_column={b!r}: has {names:,} different values, but data."
                          f"{text}_column={a!r} only {texts:,}; if the two are swapped, set "
                          f"--config.data.{text}_column={b} --config.data.{label}_column={a}")


def resolve(config: ConfigDict, named: Iterable[str], key: str) -> None:
    """Fills in data.labels, sorted by number or name with O first, and model.num_labels."""
    order = lambda name: (name != "O", not name.isdigit(), int(name) if name.isdigit() else 0, name)
    labels = config.data.labels or tuple(sorted(set(named), key=order))
    column = config.data[f"{key}_column"]
    if len(labels) < 2:
        raise ConfigError(f"data.{key}_column={column!r}: the training set has only the label "
                          f"{', '.join(labels)}; at least two are required")
    if config.model.num_labels not in (0, len(labels)):
        raise ConfigError(f"model.num_labels={config.model.num_labels}: data.labels has "
                          f"{len(labels)}: {some(labels)}; set 0 to use their number")
    if any("." in name for name in labels) and all(map(NUMBER.fullmatch, labels)):
        log.warning("data.%s_column=%r: each of its %d numbers is a separate class; use "
                    "objective.name=regression to predict numbers", key, column, len(labels))
    config.data.labels, config.model.num_labels = labels, len(labels)
    ids = numbered(labels)
    for name in itertools.islice(named, CHECKED):  # exhausted if they provided the labels
        place(ids, name, config, key)

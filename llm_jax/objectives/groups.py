"""Group DRO: the weighted loss of groups, with more weight on groups of high loss (Sagawa 2020).

https://arxiv.org/abs/1911.08731, Algorithm 1, on batches. The log-weights log q [G] are part of the
optimizer state, and in training a field of the batch, LOG_Q.
"""

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from llm_jax.config import ConfigError, flatten, unread
from llm_jax.objectives.objective import rows

LOG_Q = "log_q"
# The other values of these settings have another loss than a mean over the rows of a batch.
PLAIN = {"objective.r_drop": 0, "objective.mixup": 0, "train.microbatches": 1,
         "distill.teacher": "", "privacy.clip": 0}  # fmt: skip


def refuse(config: ConfigDict) -> None:
    """Raises ConfigError for settings that groups exclude."""
    flat = flatten(config)
    for key, value in PLAIN.items():
        if config.data.group_column and flat[key] != value:
            raise ConfigError(f"{key}={flat[key]!r}: incompatible with data.group_column="
                              f"{config.data.group_column!r}; set {key}={value!r}")


def active(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the groups; () if the run does not read them."""
    return () if unread(config, "objective.groups") else tuple(config.objective.groups)


def ascend(log_q: Array, losses: Array, step: float) -> Array:
    """Exponentiated gradient ascent: q_g exp(step loss_g), normalised; weights as logarithms."""
    return jax.nn.log_softmax(log_q + step * losses)


def weighted(each: Array, batch: dict, cfg: ConfigDict) -> tuple[Array, dict]:
    """Returns row losses [B] times weights, and metrics: the loss and the weight of each group.

    Their mean over rows is sum_g q_g (mean loss of group g), with q updated by these losses first.
    A group without rows has loss 0.
    """
    real = rows(batch)
    inside = real * (batch["group"] == jnp.arange(len(cfg.groups))[:, None])  # [G, B]
    count = jnp.maximum(inside.sum(1), 1)
    losses = jax.lax.stop_gradient((inside * each).sum(1) / count)
    q = jnp.exp(ascend(batch[LOG_Q], losses, cfg.group_step))
    metrics = {f"{what}_{name}": (x * real.sum(), "rows")
               for what, values in (("loss", losses), ("weight", q))
               for name, x in zip(cfg.groups, values, strict=True)}  # fmt: skip
    return each * (q * real.sum() / count)[batch["group"]], metrics

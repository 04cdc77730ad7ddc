"""Differential privacy: DP-SGD for any objective, and privacy accounting (docs/privacy.md).

Abadi 2016, https://arxiv.org/abs/1607.00133: clips the gradient of each document and adds noise to
their sum. Documents are drawn by Poisson sampling (data/sampled.py).
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from llm_jax import models
from llm_jax.config import ConfigError, flatten
from llm_jax.data.sampled import OVERFLOW, rate

NOISE = np.uint32(2**32 - 1)  # folded into the step's key; differs from row numbers
# dp-accounting warns about each Rényi order that it skips; the bound is valid without them.
logging.getLogger("absl").addFilter(lambda record: "dp_accounting" not in record.pathname)


def check(config: ConfigDict) -> None:
    """Checks that gradients are per document and that accounting is valid.

    Raises:
      ConfigError: names the key, its value and the fix.
    """
    m, name = config.model, config.objective.name
    wanted = {"data.packing": "none", "data.ramp_steps": 0, "data.shards": 1, "objective.mixup": 0}
    wanted |= {"mesh.pipeline": 1} | ({"model.router_balance": 0} if m.num_experts else {})
    clip, flat = f"privacy.clip={config.privacy.clip:g}", flatten(config)
    for key, value in wanted.items():
        if flat[key] != value:
            raise ConfigError(f"{key}={flat[key]!r}: incompatible with {clip}, which needs "
                              f"separate gradients of documents; set {key}={value}")
    if m.num_experts and not (m.expert_capacity or m.expert_slots):
        raise ConfigError(f"model.expert_capacity=0: incompatible with {clip}: JAX cannot batch "
                          "the products of dropless experts; set a capacity factor, such as 1.25")
    balanced = config.objective.class_weights == ("balanced",)
    if name in ("contrastive", "similarity", "bert") or balanced:
        raise ConfigError(f"objective.name={name!r}: incompatible with {clip}: its loss combines "
                          "several documents (negatives, next sentences, balanced weights)")
    if config.distill.teacher:
        raise ConfigError(f"distill.teacher={config.distill.teacher!r}: incompatible with {clip}")
    if "," in config.data.train:
        raise ConfigError(f"data.train={config.data.train!r}: incompatible with {clip}, which "
                          "samples the documents of one source")
    if not (config.privacy.noise or config.privacy.epsilon):
        raise ConfigError(f"privacy.noise=0: {clip} without noise is not private; set "
                          "privacy.epsilon, or privacy.noise")
    if importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(f"{clip}: needs `pip install dp-accounting`")


def spent(config: ConfigDict, documents: int, noise: float, steps: int) -> float:
    """Returns epsilon after `steps` steps at privacy.delta, for adding or removing one document.

    Rényi DP of the Poisson-sampled Gaussian mechanism (Mironov 2019, arXiv:1908.10530) by Google's
    dp-accounting, at delta / 2. The other half covers batch overflows, steps (1 + e^epsilon)
    OVERFLOW (Chua 2024, arXiv:2411.04205, section 3).
    """
    import dp_accounting

    accountant, delta = dp_accounting.rdp.RdpAccountant(), config.privacy.delta / 2
    accountant.compose(_event(rate(config, documents), noise), steps)
    epsilon = float(accountant.get_epsilon(delta))
    fits = epsilon < 700 and steps * (1 + math.exp(epsilon)) * OVERFLOW <= delta
    return epsilon if fits else math.inf


def noise_of(config: ConfigDict, documents: int) -> float:
    """Returns privacy.noise, or the smallest noise for which train.steps stay in the budget."""
    p = config.privacy
    if p.noise:
        return p.noise
    import dp_accounting

    event = functools.partial(_event, rate(config, documents))
    repeated = lambda noise: dp_accounting.SelfComposedDpEvent(event(noise), config.train.steps)
    try:
        noise = dp_accounting.calibrate_dp_mechanism(
            dp_accounting.rdp.RdpAccountant, repeated, p.epsilon, p.delta / 2, tol=1e-4
        )
    except dp_accounting.mechanism_calibration.NoBracketIntervalFoundError as error:
        raise ConfigError(f"privacy.epsilon={p.epsilon:g}: found no sufficient noise ({error})"
                          ) from error  # fmt: skip
    if math.isinf(spent(config, documents, noise, config.train.steps)):
        raise ConfigError(f"privacy.epsilon={p.epsilon:g}: is too large to be accounted for")
    return noise


def _event(probability: float, noise: float) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(noise)
    return dp_accounting.PoissonSampledDpEvent(probability, gaussian)


def gradients(clip: float, noise: float, expected: float) -> Callable:
    """Returns the DP-SGD replacement of `train.state.gradients`, with the same signature.

    gradient = (sum of g_i min(1, clip / |g_i|) + clip noise z) / expected, z from N(0, 1), where
    g_i is the gradient of the mean loss of row i, over all trained parameters. Non-finite g_i count
    as 0, so that no step is skipped. Microbatches run in sequence, with all row gradients held;
    those without real rows are skipped.

    Args:
      expected: expected number of rows per step; the actual number is private.
    """

    def private(loss, params, batch, key, weights, microbatches):
        grad_of = jax.value_and_grad(loss, has_aux=True)

        def one(row, number):
            row = jax.tree.map(lambda x: x[None], row)
            (total, metrics), grads = grad_of(params, row, jax.random.fold_in(key, number))
            norm = optax.global_norm(grads)
            scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
            grads = jax.tree.map(lambda g: scale * g, grads)
            counts = jnp.isfinite(total) & jnp.isfinite(norm) & models.real(row).any()
            values = (total, metrics | {"clipped": norm > clip}), grads, counts
            return jax.tree.map(lambda x: jnp.where(counts, x, 0), values)

        def some(rows):
            return jax.tree.map(lambda x: x.sum(0), jax.vmap(one)(*rows))

        def add(total, rows):
            new = lambda: jax.tree.map(jnp.add, total, some(rows))
            return jax.lax.cond(models.real(rows[0]).any(), new, lambda: total), None

        count = len(jax.tree.leaves(batch)[0])
        split = lambda x: x.reshape(microbatches, -1, *x.shape[1:])
        parts = jax.tree.map(split, (batch, jnp.arange(count)))
        shapes = jax.eval_shape(some, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (values, grads, counted), _ = jax.lax.scan(add, zeros, parts)
        values = jax.tree.map(lambda x: x / jnp.maximum(counted, 1), values)
        if noise:
            z = optax.tree.random_like(jax.random.fold_in(key, NOISE), grads)
            grads = jax.tree.map(lambda g, z: g + clip * noise * z, grads, z)
        return values, jax.tree.map(lambda g: g / expected, grads)

    return private


class Account:
    """DP-SGD for a run: its gradients, and a hook that logs the privacy spent, as `epsilon`.

    Both depend only on the config, the number of documents and the number of steps, so that a
    resumed run accounts for all of its steps.
    """

    def __init__(self, config: ConfigDict):
        check(config)
        self.config, self.documents, self.noise = config, 0, 0.0

    def make_step(self, trainer: Any) -> Callable:
        """Returns the train step with these `gradients`, for train.loop.Trainer.

        Raises:
          ConfigError: train.steps differ from those for which privacy.epsilon determined the noise;
            a delta that would allow publishing a document.
        """
        config, p, old = self.config, self.config.privacy, trainer.folder.old
        if old is not None and not p.noise and old.train.steps != config.train.steps:
            raise ConfigError(f"train.steps={config.train.steps}: was {old.train.steps}, for which "
                              f"the noise meets privacy.epsilon={p.epsilon:g}; keep it, or start a "
                              "new run")
        self.documents = trainer.documents
        if p.delta * self.documents >= 1:
            raise ConfigError(f"privacy.delta={p.delta:g}: must be below 1 / documents = 1 / "
                              f"{self.documents:,}; otherwise publishing one counts as private")
        self.noise = noise_of(config, self.documents)
        expected = rate(config, self.documents) * self.documents
        made = gradients(p.clip, self.noise, expected)
        return functools.partial(trainer.setup.train_step, gradients=made)

    def hook(self, info: Any) -> None:
        """Adds epsilon and the noise to the logged values."""
        if info.values:
            epsilon = spent(self.config, self.documents, self.noise, info.step)
            info.values |= {"epsilon": epsilon, "noise": self.noise}

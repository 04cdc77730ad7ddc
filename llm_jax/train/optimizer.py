"""Optimizers and learning-rate schedules by name, from Optax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

# LayerNorm scales and biases are not decayed (BERT's and GPT-2's practice).
DECAYED = ("kernel", "embedding", "output")


def schedule(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Returns step -> learning rate: linear warm-up, then config.optimizer.schedule.

    inverse_sqrt: peak * sqrt(warmup / step) (Vaswani 2017, 5.3). wsd: constant, then a
    linear decay over the last decay_steps (Hu 2024, MiniCPM, section 4).
    """
    o, steps = config.optimizer, config.train.steps
    peak, last, warmup = o.learning_rate, o.learning_rate * o.final_fraction, o.warmup_steps
    rest = max(steps - warmup, 1)
    if o.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif o.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, o.final_fraction)
    elif o.schedule == "linear":
        after = optax.linear_schedule(peak, last, rest)
    elif o.schedule == "inverse_sqrt":
        start = max(warmup, 1)
        after = lambda step: peak * (start / jnp.maximum(step + start, start)) ** 0.5
    else:
        decay = o.decay_steps or max(steps // 5, 1)
        after = optax.linear_schedule(peak, last, decay, transition_begin=max(rest - decay, 0))
    # The first step is already taken at peak / warmup: a step at zero would teach nothing.
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def decayed(params: dict) -> dict:
    """True for matrices and embeddings, which weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def build(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer: clip by global norm, direction, decoupled decay, learning rate."""
    o = config.optimizer
    parts = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    parts.append(direction(o))
    if o.weight_decay:
        parts.append(optax.add_decayed_weights(o.weight_decay, mask=decayed))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(config)))


def direction(o: ConfigDict) -> optax.GradientTransformation:
    """Returns what config.optimizer.name makes of a gradient, before decay and learning rate.

    adamw: Loshchilov and Hutter 2019. lion: Chen 2023. adafactor: Shazeer and Stern 2018.
    muon: Jordan 2024 for matrices, scaled to Adam's size (Liu 2025, 2.2), AdamW for the rest.
    """
    if o.name == "adamw":
        return optax.scale_by_adam(o.b1, o.b2, o.eps)
    if o.name == "lion":
        return optax.scale_by_lion(o.b1, o.b2)
    if o.name == "adafactor":
        # Optax's aliases end in a factor of -1, which the learning rate brings again.
        return optax.chain(optax.adafactor(), optax.scale(-1.0))
    muon = optax.contrib.muon(
        1.0,
        beta=o.muon_momentum,
        adam_b1=o.b1,
        adam_b2=o.b2,
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=0.2,
    )
    return optax.chain(muon, optax.scale(-1.0))


def _muon_axes(params: dict) -> dict:
    """Which axes of a kernel make its matrix: [layers, inputs…, outputs…]; others get AdamW."""

    def one(path, x):
        if path[-1].key != "kernel":
            return None
        split = 3 if path[-2].key == "out" else 2  # attention's output contracts heads and kv
        axes = tuple(range(1, x.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[: split - 1], axes[split - 1 :])

    return jax.tree_util.tree_map_with_path(one, params)

"""Optimizers and learning rate schedules by name, from Optax, applied per unstacked parameter."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from ml_collections import ConfigDict

from llm_jax.objectives.groups import LOG_Q, active, ascend
from llm_jax.train.groups import Group, name


def schedule(
    config: ConfigDict, peak: jax.typing.ArrayLike | None = None
) -> Callable[[jax.Array], jax.Array]:
    """Returns step -> learning rate: linear warm-up, then config.optimizer.schedule.

    peak: None: config.optimizer.learning_rate.

    inverse_sqrt: the peak for hold_steps, then peak * sqrt(start / step) from start = warmup_steps
    + hold_steps (Vaswani 2017, 5.3: no hold; Raffel 2020, 3.1.2: no warm-up). cosine, linear:
    decays to final_fraction in decay_steps, then constant. wsd: constant, then a linear decay over
    the last decay_steps (Hu 2024, MiniCPM, section 4).
    """
    o, steps = config.optimizer, config.train.steps
    peak = o.learning_rate if peak is None else peak
    last = peak * o.final_fraction
    warmup = round(o.warmup_steps * (steps if o.warmup_steps < 1 else 1))
    after_warmup = max(steps - warmup, 1)
    if o.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif o.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, o.decay_steps or after_warmup, o.final_fraction)
    elif o.schedule == "linear":
        after = optax.linear_schedule(peak, last, o.decay_steps or after_warmup)
    elif o.schedule == "inverse_sqrt":
        start = max(warmup + o.hold_steps, 1)
        after = lambda step: peak * (start / jnp.maximum(step + warmup, start)) ** 0.5
    else:
        decay = o.decay_steps or max(steps // 5, 1)
        begin = max(after_warmup - decay, 0)
        after = optax.linear_schedule(peak, last, decay, transition_begin=begin)
    # The first step uses peak / warmup: a step with rate 0 would have no effect.
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def build(config: ConfigDict, groups: dict[str, Group]) -> optax.GradientTransformation:
    """Returns the optimizer: clip by global norm, direction, decoupled decay, learning rate.

    update = -rate(step) factor (direction(clipped gradient) + decay decay_factor parameter),
    followed by the proximal step of L1, see `_steps`.

    It applies to trained parameters only; frozen ones are None (`groups.split`). Its update takes
    `peak`, see `schedule`.
    """
    o = config.optimizer
    parts = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    names = sorted({group.optimizer for group in groups.values() if group.rate})
    directions = {which: direction(which, o, groups) for which in names}
    if len(names) == 1:
        parts.append(directions[names[0]])
    else:
        kind = lambda path, _: groups[name(path)].optimizer
        parts.append(
            optax.partition(
                directions, lambda params: jax.tree_util.tree_map_with_path(kind, params)
            )
        )
    return optax.chain(*parts, _steps(config, groups), *_group_weights(config))


def _group_weights(config: ConfigDict) -> list[optax.GradientTransformation]:
    """Updates the weights of groups, if any, by the losses in `metrics`; see objectives.groups."""
    names, step = active(config), config.objective.group_step

    def update(updates, state, params, *, metrics, **_):
        losses = jnp.stack([metrics[f"loss_{name}"] for name in names])
        return updates, {LOG_Q: ascend(state[LOG_Q], losses, step)}

    first = lambda params: {LOG_Q: jnp.zeros(len(names))}
    return [optax.GradientTransformationExtraArgs(first, update)] * bool(names)


def _steps(config: ConfigDict, groups: dict[str, Group]) -> optax.GradientTransformation:
    """Returns the last transformation: weight decay, learning rate per parameter, and L1.

    factor = rate_factor layer_decay^distance (Clark 2020, appendix A), and 0 for the first
    distance x unfreeze_steps steps (gradual unfreezing; Howard and Ruder 2018, 3.3). L1 is soft
    thresholding of matrices by rate factor l1 (Duchi and Singer 2009, 5.1). keep_zeros: entries of
    matrices that are 0 are not updated, which is the mask of a pruned model.
    """
    o = config.optimizer

    def step(rate, count, path, update, param):
        group = groups[name(path)]
        far = np.array(group.distance)
        far = far.reshape(far.shape + (1,) * (param.ndim - far.ndim))
        rate = group.rate * rate
        if o.layer_decay != 1:
            rate = rate * np.float32(o.layer_decay) ** far
        if o.unfreeze_steps:
            rate = rate * (count >= far * o.unfreeze_steps)
        if decay := o.weight_decay * group.decay:
            update = update + decay * param
        update = -rate * update
        if l1 := o.l1 * group.decay:
            new = param + update
            new = jnp.sign(new) * jnp.maximum(jnp.abs(new) - rate * l1, 0)
            update = new - param
        if o.keep_zeros and group.matrix:
            update = jnp.where(param == 0, 0, update)
        return update

    def apply(updates, state, params, *, peak=None, **_):
        rate = schedule(config, peak)(state.count)
        one = lambda *leaf: step(rate, state.count, *leaf)
        updates = jax.tree_util.tree_map_with_path(one, updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    start = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
    return optax.GradientTransformationExtraArgs(start, apply)


def direction(which: str, o: ConfigDict, groups: dict[str, Group]) -> optax.GradientTransformation:
    """Returns the update direction of an optimizer, before weight decay and learning rate.

    adamw: Loshchilov and Hutter 2019. lion: Chen 2023. adafactor: Shazeer and Stern 2018.
    muon: Jordan 2024, scaled to the RMS of Adam's updates (Liu 2025, 2.2), for matrices of layers.
    """
    if which == "adamw":
        return optax.scale_by_adam(*betas(o), o.eps)
    if which == "lion":
        return optax.scale_by_lion(*betas(o))
    if which == "adafactor":
        # Optax's aliases include the factor -1, which the learning rate applies again.
        return apart(optax.chain(optax.adafactor(), optax.scale(-1.0)), groups)
    axes = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: _muon_axes(groups[name(path)]), params
    )

    def to_adams_size(path, x):
        return 0.2 * math.sqrt(max(matrix(groups[name(path)], x.shape)[-2:])) * x

    return optax.chain(
        optax.contrib.scale_by_muon(beta=o.muon_momentum, weight_dimension_numbers=axes),
        optax.stateless(lambda x, _: jax.tree_util.tree_map_with_path(to_adams_size, x)),
    )


def betas(o: ConfigDict) -> tuple[float, float]:
    """Returns b1 and b2 of config.optimizer; a b2 of 0 is the optimizer's default."""
    return o.b1, o.b2 or (0.99 if o.name == "lion" else 0.95)


def _muon_axes(group: Group) -> optax.contrib.MuonDimensionNumbers:
    inputs, *outputs = group.spaces
    return optax.contrib.MuonDimensionNumbers(inputs, sum(outputs, ()))


def matrix(group: Group, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a parameter as matrices [..., in, out]; a vector's shape unchanged."""
    if len(group.spaces) < 2:
        return shape
    inputs = math.prod(shape[i] for i in group.spaces[0])
    outputs = math.prod(shape[i] for space in group.spaces[1:] for i in space)
    return *shape[: group.stacked], inputs, outputs


def apart(
    tx: optax.GradientTransformation, groups: dict[str, Group]
) -> optax.GradientTransformation:
    """Applies tx separately to the parameter of each layer and expert, with matrices as [in, out].

    The state of [layers, D, N, H] is that of matrices [D, N H], stacked, as with T5X's
    logical_factor_rules (layers and experts: BATCH).
    """

    def shaped(path, x):
        return x.reshape(matrix(groups[name(path)], x.shape))

    def each(function, path):
        for _ in range(groups[name(path)].stacked):
            function = jax.vmap(function)
        return function

    def init(params):
        one = lambda path, p: each(tx.init, path)(shaped(path, p))
        return jax.tree_util.tree_map_with_path(one, params)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        updates, states = [], []
        for (path, p), g, s in zip(
            leaves, tree.flatten_up_to(grads), tree.flatten_up_to(state), strict=True
        ):
            new, s = each(tx.update, path)(shaped(path, g), s, shaped(path, p))
            updates.append(new.reshape(p.shape))
            states.append(s)
        return tree.unflatten(updates), tree.unflatten(states)

    return optax.GradientTransformation(init, update)

"""What training carries from step to step, and the step: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from llm_jax import objectives
from llm_jax.models import Model, init_params, router_loss
from llm_jax.objectives import Objective
from llm_jax.train.optimizer import schedule


@flax.struct.dataclass
class TrainState:
    """Everything a resumed run needs beside its config and its data iterator."""

    step: jax.Array  # steps taken, skipped ones included
    params: Any
    opt_state: Any
    ema: Any  # averaged parameters, or None
    skipped: jax.Array  # steps whose loss or gradient was not finite
    skipped_in_a_row: jax.Array


def init_state(
    model: Model, tx: optax.GradientTransformation, config: ConfigDict, params: Any = None
) -> TrainState:
    """Returns the state at step 0, from given parameters or those that config.seed draws."""
    if params is None:
        params = init_params(model, jax.random.key(config.seed))
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay else None
    return TrainState(zero, params, tx.init(params), ema, zero, zero)


def make_train_step(
    model: Model, objective: Objective, tx: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the pure step. Randomness is fold_in(key(seed), step): a resumed run repeats it.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were
    and is counted. Metrics are scalars: loss (nats a weighted token), grad_norm, ….
    """
    rate = schedule(config)

    def gradients(params, batch, key):
        weights = {k: jnp.maximum(w, 1e-9) for k, w in objective.weights(batch).items()}

        def loss_of(params, part, key):
            outputs, sown = model.apply(
                {"params": params}, part, deterministic=False, rngs={"dropout": key},
                mutable=["losses"],
            )  # fmt: skip
            terms, metrics = objective.losses(outputs, part, config.objective)
            metrics = {name: total / weights[term] for name, (total, term) in metrics.items()}
            own = router_loss(config.model, sown) / config.train.microbatches
            return sum(total / weights[term] for term, total in terms.items()) + own, metrics

        grad_of = jax.value_and_grad(loss_of, has_aux=True)
        n = config.train.microbatches
        if n == 1:
            return grad_of(params, batch, key)

        def add(total, part_and_index):
            part, i = part_and_index
            more = grad_of(params, part, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, more), None

        # Strided, so that each part is spread over the mesh as the batch is.
        parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(grad_of, params, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, (parts, jnp.arange(n)))[0]

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (total, metrics), grads = gradients(state.params, batch, key)
        norm = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - config.train.ema_decay)

        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        skip = 1 - finite.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            skipped=state.skipped + skip,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        )
        metrics |= {
            "objective": total,
            "grad_norm": norm,
            "learning_rate": rate(state.step - state.skipped),
            "tokens": objectives.tokens(batch),
            "skipped": new.skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }
        return new, metrics

    return train_step


def make_eval_step(
    model: Model, objective: Objective, config: ConfigDict
) -> Callable[[Any, dict], tuple[dict, dict]]:
    """Returns (params, batch) -> ({metric: sum}, {metric: weight}), to be added over batches."""

    def eval_step(params, batch):
        outputs = model.apply({"params": params}, batch)
        _, metrics = objective.losses(outputs, batch, config.objective)
        weights = objective.weights(batch)
        sums = {name: total for name, (total, _) in metrics.items()}
        return sums, {name: weights[term] for name, (_, term) in metrics.items()}

    return eval_step

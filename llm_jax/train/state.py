"""The train state and the train step: (state, batch) -> (state, metrics)."""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from llm_jax import objectives
from llm_jax.data.chunks import DOCUMENT
from llm_jax.models import Model, auxiliary_loss, init_params, quantized, real
from llm_jax.models.model import positions_of
from llm_jax.objectives import Objective
from llm_jax.objectives.groups import LOG_Q, active
from llm_jax.train import groups
from llm_jax.train.optimizer import schedule


@flax.struct.dataclass
class TrainState:
    """The state of a run, besides its config and data iterator."""

    step: jax.Array  # number of steps, including skipped ones
    params: Any
    opt_state: Any
    ema: Any  # exponential moving average of params, or None
    skipped: jax.Array  # number of steps with a non-finite loss or gradient
    skipped_in_a_row: jax.Array


def init_state(
    model: Model, tx: optax.GradientTransformation, config: ConfigDict, params: Any = None
) -> TrainState:
    """Initialises the state from given parameters, or from config.seed."""
    if params is None:
        params = init_params(model, jax.random.key(config.seed))
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay else None
    opt_state = tx.init(groups.split(config, params)[0])
    return TrainState(zero, params, opt_state, ema, zero, zero)


def fill(model: Model, seed: jax.typing.ArrayLike, params: dict) -> dict:
    """Completes given parameters by initialising the missing ones from a seed.

    After an import these are LoRA matrices or a new head. Given parameters are quantised if needed.
    """

    def put(drawn: Any, given: Any) -> Any:
        if isinstance(drawn, dict):
            return {k: put(x, given[k]) if k in given else x for k, x in drawn.items()}
        return quantized(drawn, given)

    return put(init_params(model, jax.random.key(seed)), params)


def loss(
    model: Model, objective: Objective, config: ConfigDict, params: Any, batch: dict,
    key: jax.Array, weights: dict | None = None,
) -> tuple[jax.Array, dict]:
    """Training loss: returns (loss, {metric: mean}) of a batch, with dropout from `key`.

    weights: {term: normaliser of its sum over the batch}; None: computed from this batch.
    """
    weights = objective.weights(batch) if weights is None else weights
    cfg = config.objective
    r_drop = cfg.r_drop if objective.classes else 0.0
    if r_drop:
        batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
        weights = {term: 2 * weight for term, weight in weights.items()}
    weights = {term: jnp.maximum(weight, 1e-9) for term, weight in weights.items()}
    share, labels = 1.0, batch
    mixes = cfg.mixup and objective.classes and config.model.kind == "encoder"
    if mixes:
        batch, share = mixed(model, params, batch, jax.random.fold_in(key, 1), cfg.mixup)
    outputs, sown = model.apply(
        {"params": params}, batch, deterministic=False, rngs={"dropout": key}, mutable=["losses"]
    )
    terms, metrics = objective.losses(outputs, labels, cfg)
    if mixes:
        others = objective.losses(outputs, jax.tree.map(lambda x: x[::-1], labels), cfg)[0]
        terms = {term: share * x + (1 - share) * others[term] for term, x in terms.items()}
    total = sum(total / weights[term] for term, total in terms.items())
    total += auxiliary_loss(config.model, sown)
    if r_drop:
        total += r_drop * disagreement(objective.predict(outputs, labels)["logits"])
    return total, {name: total / weights[term] for name, (total, term) in metrics.items()}


def mixed(
    model: Model, params: Any, batch: dict, key: jax.Array, alpha: float
) -> tuple[dict, jax.Array]:
    """Mixup of embeddings (wordMixup): returns the batch mixed with its reverse, and the share.

    embeddings = share x + (1 - share) reversed x, share from Beta(alpha, alpha) (Guo 2019, 3.2).
    """
    look_up = lambda m, *inputs: m.encoder.look_up(*inputs, deterministic=False)
    inputs = batch["tokens"], positions_of(batch), batch.get("types")
    x = model.apply({"params": params}, *inputs, method=look_up, rngs={"dropout": key})
    share = jax.random.beta(key, alpha, alpha)
    seen = jnp.maximum(batch["segment_ids"], batch["segment_ids"][::-1])
    return batch | {"embeddings": share * x + (1 - share) * x[::-1], "segment_ids": seen}, share


def disagreement(logits: jax.Array) -> jax.Array:
    """R-Drop's loss: mean (KL(p | q) + KL(q | p)) / 2 of two passes [2 B, C] (Liang 2021, 2.1)."""
    p, q = jnp.split(jax.nn.log_softmax(logits), 2)
    return ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1).mean() / 2


def gradients(
    loss: Callable, params: Any, batch: dict, key: jax.Array, weights: dict, microbatches: int
) -> tuple[tuple[jax.Array, dict], Any]:
    """Returns ((loss, metrics), gradients) of a batch, with gradient accumulation.

    Sums over tokens are divided by the weights of the whole batch, so that the result equals that
    of the large batch for any distribution of padding. The router's balance loss is a product of
    two means over a microbatch: its mean over microbatches differs from that of the large batch.

    Args:
      loss: (params, batch, key, weights) -> (loss, metrics), applied to microbatches.
      weights: those of the whole batch, see `loss`.
    """
    grad_of = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return grad_of(params, batch, key, weights)
    each = {term: weight / microbatches for term, weight in weights.items()}

    def add(total, part_and_index):
        part, i = part_and_index
        one = grad_of(params, part, jax.random.fold_in(key, i), each)
        return jax.tree.map(lambda a, b: a + b / microbatches, total, one), None

    # Strided, so that each microbatch is sharded like the batch.
    split = lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad_of, params, jax.tree.map(lambda x: x[0], parts), key, each)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(microbatches)))[0]


def update(
    tx: optax.GradientTransformation, config: ConfigDict, state: TrainState, grads: Any,
    finite: jax.Array, metrics: dict, peak: jax.typing.ArrayLike | None = None,
) -> TrainState:
    """Optimizer update: returns the next state; if `finite` is false, only counters change.

    After each step that is not skipped, ema = ema_decay ema + (1 - ema_decay) params. Frozen
    parameters, None in grads, are unchanged.
    """
    trained, frozen = groups.split(config, state.params)
    updates, opt_state = tx.update(grads, state.opt_state, trained, peak=peak, metrics=metrics)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    new, ema = keep(optax.apply_updates(trained, updates), trained), state.ema
    if ema is not None:
        average, _ = groups.split(config, ema)
        average = keep(optax.incremental_update(new, average, 1 - config.train.ema_decay), average)
        ema = groups.join(average, frozen)
    skip = 1 - finite.astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=groups.join(new, frozen),
        opt_state=keep(opt_state, state.opt_state),
        ema=ema,
        skipped=state.skipped + skip,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
    )


def make_train_step(
    model: Model, objective: Objective, tx: optax.GradientTransformation, config: ConfigDict,
    gradients: Callable = gradients,
) -> Callable[..., tuple[TrainState, dict]]:
    """Returns the pure train step: loss, gradients, update. Metrics are scalars: loss, grad_norm ….

    The random key is fold_in(key(seed), step), so that a resumed run repeats it. The seed (default
    config.seed) and the schedule's peak are arguments, so that runs with different seeds and
    learning rates share a compiled program. A step with a non-finite loss or gradient is counted,
    and leaves parameters and optimizer state unchanged.

    gradients: replaces `gradients`, for example by one that clips per-example gradients (DP-SGD;
      Abadi 2016).
    """

    def train_step(
        state: TrainState, batch: dict, seed: jax.typing.ArrayLike = config.seed,
        peak: jax.typing.ArrayLike = config.optimizer.learning_rate,
    ) -> tuple[TrainState, dict]:
        trained, frozen = groups.split(config, state.params)
        if active(config):
            batch = batch | {LOG_Q: optax.tree.get(state.opt_state, LOG_Q)}

        def loss_of(trained, batch, key, weights=None):
            params = groups.join(trained, frozen)
            return loss(model, objective, config, params, batch, key, weights)

        key = jax.random.fold_in(jax.random.key(seed), state.step)
        weights, parts = objective.weights(batch), config.train.microbatches
        (total, metrics), grads = gradients(loss_of, trained, batch, key, weights, parts)
        norm = optax.global_norm(grads)
        new = update(tx, config, state, grads, jnp.isfinite(total) & jnp.isfinite(norm),
                     metrics, peak)  # fmt: skip
        metrics |= {
            "objective": total,
            "grad_norm": norm,
            "learning_rate": schedule(config, peak)(state.step - state.skipped),
            "tokens": objectives.tokens(batch),
            "skipped": new.skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }
        return new, metrics

    return train_step


def make_eval_step(
    model: Model, objective: Objective, config: ConfigDict, token_bytes: np.ndarray | None = None
) -> Callable[[Any, dict], tuple[dict, dict, dict]]:
    """Returns the eval step (params, batch) -> ({metric: sum}, {metric: weight}, predictions).

    Add the first two over batches. Predictions are {name: [B, …]} of the objective, with 'real'
    [B], false for rows of padding, 'tokens' [B], the number of tokens, and 'document' [B], the
    index of the document.

    token_bytes: [V], UTF-8 bytes of each token; adds bits_per_byte for decoders, the loss in bits
      of all targets, ends of documents included, per byte of text: comparable across tokenizers.
    """

    def eval_step(params, batch):
        outputs = model.apply({"params": params}, batch)
        _, metrics = objective.losses(outputs, batch, config.objective)
        weights = objective.weights(batch)
        sums = {name: total for name, (total, _) in metrics.items()}
        weights = {name: weights[term] for name, (_, term) in metrics.items()}
        in_tokens = "targets" in batch and metrics["loss"][1] == "tokens"
        if token_bytes is not None and in_tokens and model.cfg.kind == "decoder":
            sums["bits_per_byte"] = sums["loss"] / math.log(2)
            counts = jnp.asarray(token_bytes)[batch["targets"]]
            weights["bits_per_byte"] = (counts * batch["weights"]).sum()
        if objective.predict is None:
            return sums, weights, {}
        return sums, weights, objective.predict(outputs, batch) | about(batch)

    return eval_step


def about(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns for each row of a batch whether it is real, its number of tokens, its document."""
    tokens = real(batch).sum(1)
    return {"real": tokens > 0, "tokens": tokens, DOCUMENT: batch[DOCUMENT]}

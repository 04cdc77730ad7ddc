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
from llm_jax.train import groups
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
    opt_state = tx.init(groups.split(config, params)[0])
    return TrainState(zero, params, opt_state, ema, zero, zero)


def fill(model: Model, seed: jax.typing.ArrayLike, params: dict) -> dict:
    """Returns the model's parameters: those given and, drawn from a seed, those they lack.

    Of imported weights these are LoRA's arrays, or a new head; those given may yet be quantised.
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
    """Returns (what training minimises, {metric: mean}) of a batch, with dropout from `key`.

    weights: {term: what its sum over the batch is divided by}; None: the batch's own sums.
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
    """Returns a batch of an encoder mixed with its rows in reverse, and a row's share (wordMixup).

    embeddings = share x + (1 - share) reversed x, share of Beta(alpha, alpha) (Guo 2019, 3.2).
    """
    look_up = lambda m, *inputs: m.encoder.look_up(*inputs, deterministic=False)
    inputs = batch["tokens"], positions_of(batch), batch.get("types")
    x = model.apply({"params": params}, *inputs, method=look_up, rngs={"dropout": key})
    share = jax.random.beta(key, alpha, alpha)
    seen = jnp.maximum(batch["segment_ids"], batch["segment_ids"][::-1])
    return batch | {"embeddings": share * x + (1 - share) * x[::-1], "segment_ids": seen}, share


def disagreement(logits: jax.Array) -> jax.Array:
    """Mean of (KL(p | q) + KL(q | p)) / 2 of two passes, [2 B, C] (R-Drop; Liang 2021, 2.1)."""
    p, q = jnp.split(jax.nn.log_softmax(logits), 2)
    return ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1).mean() / 2


def gradients(
    loss: Callable, params: Any, batch: dict, key: jax.Array, weights: dict, microbatches: int
) -> tuple[tuple[jax.Array, dict], Any]:
    """Returns ((loss, metrics), gradients) of a batch, by gradient accumulation over its parts.

    Terms that are sums over tokens are divided by the whole batch's weights, so that they equal
    the large batch's, however its padding is spread. A router's balance loss is a product of two
    means, of each part's own tokens: its mean over the parts is not the large batch's.

    Args:
      loss: (params, batch, key, weights) -> (loss, metrics); a part is a batch of fewer rows.
      weights: of the whole batch, see `loss`.
    """
    grad_of = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return grad_of(params, batch, key, weights)
    each = {term: weight / microbatches for term, weight in weights.items()}

    def add(total, part_and_index):
        part, i = part_and_index
        one = grad_of(params, part, jax.random.fold_in(key, i), each)
        return jax.tree.map(lambda a, b: a + b / microbatches, total, one), None

    # Strided, so that each part is spread over the mesh as the batch is.
    split = lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad_of, params, jax.tree.map(lambda x: x[0], parts), key, each)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(microbatches)))[0]


def update(
    tx: optax.GradientTransformation, config: ConfigDict, state: TrainState, grads: Any,
    finite: jax.Array, peak: jax.typing.ArrayLike | None = None,
) -> TrainState:
    """Returns the next state; where `finite` is false only the counters move.

    The average of the parameters is ema_decay average + (1 - ema_decay) parameters after each
    step that is not skipped. Frozen parameters, None in grads, stay what they are.
    """
    trained, frozen = groups.split(config, state.params)
    updates, opt_state = tx.update(grads, state.opt_state, trained, peak=peak)
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
    """Returns the pure step: loss, gradients, update. Metrics are scalars: loss, grad_norm, ….

    Randomness is fold_in(key(seed), step): a resumed run repeats it. The seed is an argument
    (config.seed where none is given), and so is the schedule's peak, so that seeds and learning
    rates share a compiled program. A step whose loss or gradient is not finite leaves parameters
    and optimizer as they were and is counted.

    gradients: another function of the same arguments as `gradients`, for example one that takes
      and clips each example's by itself (DP-SGD; Abadi 2016).
    """

    def train_step(
        state: TrainState, batch: dict, seed: jax.typing.ArrayLike = config.seed,
        peak: jax.typing.ArrayLike = config.optimizer.learning_rate,
    ) -> tuple[TrainState, dict]:
        trained, frozen = groups.split(config, state.params)

        def loss_of(trained, batch, key, weights=None):
            params = groups.join(trained, frozen)
            return loss(model, objective, config, params, batch, key, weights)

        key = jax.random.fold_in(jax.random.key(seed), state.step)
        weights, parts = objective.weights(batch), config.train.microbatches
        (total, metrics), grads = gradients(loss_of, trained, batch, key, weights, parts)
        norm = optax.global_norm(grads)
        new = update(tx, config, state, grads, jnp.isfinite(total) & jnp.isfinite(norm),
                     peak)  # fmt: skip
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
    """Returns (params, batch) -> ({metric: sum}, {metric: weight}, {prediction: [B, …]}).

    The first two are to be added over batches; predictions are what the objective predicts, with
    'real' [B], false of rows that only fill up a batch, 'tokens' [B], how many they have, and
    'document' [B], which of the set's they are of.

    token_bytes: [V], UTF-8 bytes of each token; a decoder then has bits_per_byte, the loss of all
    targets, ends of documents too, in bits over the bytes that they stand for: comparable between
    tokenizers.
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
    """Of each row of a batch: whether it is real, its tokens, and its document."""
    tokens = real(batch).sum(1)
    return {"real": tokens > 0, "tokens": tokens, DOCUMENT: batch[DOCUMENT]}

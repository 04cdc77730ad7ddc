"""Log-probabilities of given texts, and mask filling."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import models
from llm_jax.config import ConfigError
from llm_jax.decode.cache import batch_of, pad, replicated, round_up
from llm_jax.models import Model


def log_likelihoods(
    model: Model, params: Any, rows: Sequence[Sequence[int]], starts: Sequence[int],
    *, sources: Sequence[Sequence[int]] | None = None, prefix: bool = False, batch_size: int = 64,
) -> list[tuple[float, bool]]:
    """Returns for each row the log-probability of the ids from `starts` on, given the others.

    Also returns whether all of them are the most likely ids. Rows of more than model.max_length + 1
    ids (the model does not read the last one) lose their first ids. `sources`: see `cache.prepare`;
    prefix: bidirectional attention before `starts`.
    """
    length, results = model.cfg.max_length, [(0.0, True)] * len(rows)
    cuts = [max(0, len(row) - length - 1) for row in rows]
    rows = [row[cut:] for row, cut in zip(rows, cuts, strict=True)]
    starts = [max(1, start - cut) for start, cut in zip(starts, cuts, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for at in range(0, len(order), batch_size):
        places = order[at : at + batch_size]
        batch = batch_of([rows[i][:-1] for i in places], length)
        if sources:
            batch |= batch_of([sources[i] for i in places], length, "encoder_")
        real = batch["segment_ids"] > 0
        first = np.array([starts[i] for i in places], np.int32)
        if prefix:
            batch["prefix"] = first
        targets = np.pad(batch["tokens"][:, 1:], ((0, 0), (0, 1)))
        targets[np.arange(len(places)), real.sum(1) - 1] = [rows[i][-1] for i in places]
        wanted = real & (np.arange(real.shape[1]) >= first[:, None] - 1)
        sums, best = _score(model, params, *replicated((batch, targets, wanted)))
        for i, total, greedy in zip(places, np.asarray(sums), np.asarray(best), strict=True):
            results[i] = float(total), bool(greedy)
    return results


@partial(jax.jit, static_argnums=0)
def _score(model, params, batch, targets, wanted):
    """Sums log-probabilities of targets [B, T] where wanted; also whether all are the argmax."""
    outputs = model.apply({"params": params}, batch)

    def row(args):  # logits of one row at a time
        hidden, targets, wanted = args
        logits = models.logits(outputs._replace(hidden=hidden[None]))[0]
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        each = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(wanted, each, 0).sum(), ((logits.argmax(-1) == targets) | ~wanted).all()

    return replicated(jax.lax.map(row, (outputs.hidden, targets, wanted)))


def fill(
    model: Model, params: Any, prompts: Sequence[Sequence[int]], mask_id: int,
    *, top_k: int = 5, allowed: np.ndarray | None = None,
) -> list[list[list[tuple[int, float]]]]:
    """Mask filling: returns the top_k (id, probability) for each mask_id in each prompt.

    Sorted by probability. Each mask is filled independently (Devlin 2019, 3.1). Probabilities are
    normalised over the `allowed` ids, bool [V]; None: all.

    Raises:
      ConfigError: top_k exceeds the number of ids.
    """
    cfg = model.cfg
    allowed = np.ones(cfg.vocab_size, bool) if allowed is None else allowed
    if top_k > allowed.sum():
        raise ConfigError(f"top_k={top_k}: must be at most {allowed.sum()}, the number of ids")
    gaps = [[i for i, token in enumerate(prompt) if token == mask_id] for prompt in prompts]
    places, counts = pad(gaps, cfg.max_length)
    batch = batch_of(prompts, cfg.max_length) | {"masked_positions": places}
    arrays = replicated((batch, allowed))
    likeliest = _likeliest(model, round_up(top_k, cfg.vocab_size), params, *arrays)
    ids, probabilities = (np.asarray(x)[..., :top_k].tolist() for x in likeliest)
    return [
        [list(zip(*pair, strict=True)) for pair in zip(i[:n], p[:n], strict=True)]
        for i, p, n in zip(ids, probabilities, counts, strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 1))
def _likeliest(model, top_k, params, batch, allowed):
    """Tokens [B, T], masked at masked_positions [B, P] -> ids, probabilities [B, P, top_k]."""
    logits = models.logits(model.apply({"params": params}, batch))
    probability = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    values, ids = jax.lax.top_k(probability, top_k)
    return replicated((ids, values))

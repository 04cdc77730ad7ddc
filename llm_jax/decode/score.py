"""Log-probabilities of given texts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import models
from llm_jax.decode.cache import batch_of, replicated
from llm_jax.models import Model


def log_likelihoods(
    model: Model, params: Any, rows: Sequence[Sequence[int]], starts: Sequence[int],
    *, sources: Sequence[Sequence[int]] | None = None, prefix: bool = False, batch_size: int = 64,
) -> list[tuple[float, bool]]:
    """Returns of each row of ids the log-probability of those from `starts` on, given the others.

    Beside it, whether each of them is the likeliest. Of a row of more than model.max_length + 1
    ids, the last of which the model does not read, the first are left out. `sources`: see
    `cache.prepare`; prefix: what is before `starts` is seen in both directions.
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
    """Sums of log-probabilities of targets [B, T] where wanted, and whether all are likeliest."""
    outputs = model.apply({"params": params}, batch)

    def row(args):  # logits of one at a time
        hidden, targets, wanted = args
        logits = models.logits(outputs._replace(hidden=hidden[None]))[0]
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        each = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(wanted, each, 0).sum(), ((logits.argmax(-1) == targets) | ~wanted).all()

    return replicated(jax.lax.map(row, (outputs.hidden, targets, wanted)))

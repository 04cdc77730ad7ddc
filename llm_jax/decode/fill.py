"""Mask filling: the likeliest tokens of a masked language model's gaps."""

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


def fill(
    model: Model, params: Any, prompts: Sequence[Sequence[int]], mask_id: int,
    *, top_k: int = 5, allowed: np.ndarray | None = None,
) -> list[list[list[tuple[int, float]]]]:
    """Fills masks: for each prompt and each mask_id in it, the top_k (id, probability).

    The likeliest comes first. Each gap is filled as if the others stayed open (Devlin 2019, 3.1).
    Probabilities are among the `allowed` ids, bool [V]; None: all.

    Raises:
      ConfigError: top_k is more than there are ids.
    """
    cfg = model.cfg
    allowed = np.ones(cfg.vocab_size, bool) if allowed is None else allowed
    if top_k > allowed.sum():
        raise ConfigError(f"top_k={top_k}: must be at most {allowed.sum()}, the ids there are")
    gaps = [[i for i, token in enumerate(prompt) if token == mask_id] for prompt in prompts]
    places, counts = pad(gaps, cfg.max_length)
    batch = batch_of(prompts, cfg.max_length) | {"masked_positions": places}
    arrays = replicated((batch, allowed))
    likeliest = _fill(model, round_up(top_k, cfg.vocab_size), params, *arrays)
    ids, probabilities = (np.asarray(x)[..., :top_k].tolist() for x in likeliest)
    return [
        [list(zip(*pair, strict=True)) for pair in zip(i[:n], p[:n], strict=True)]
        for i, p, n in zip(ids, probabilities, counts, strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 1))
def _fill(model, top_k, params, batch, allowed):
    """Tokens [B, T] with gaps at masked_positions [B, P] -> ids, probabilities [B, P, top_k]."""
    logits = models.logits(model.apply({"params": params}, batch))
    probability = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    values, ids = jax.lax.top_k(probability, top_k)
    return replicated((ids, values))

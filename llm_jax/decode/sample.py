"""Greedy decoding and sampling (temperature, top-k, top-p), jitted, with a key/value cache."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import models
from llm_jax.models import Model


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continues each prompt by up to max_new_tokens ids, ending after eos_id where it comes.

    Prompts may differ in length, and none may be empty. temperature 0 is greedy; top_k 0 and
    top_p 1 cut nothing off. A row's samples depend on (seed, row, index) alone. A sequence that
    outgrows model.max_length goes on from its last max_length / 2 tokens.

    Raises:
      ValueError: an empty prompt, or a setting out of range.
    """
    if not all(len(p) for p in prompts):
        raise ValueError("prompts: one is empty; start it with the tokenizer's bos_id")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}, max_new_tokens="
            f"{max_new_tokens}: need temperature >= 0, top_k >= 0, 0 < top_p <= 1, "
            "max_new_tokens >= 1"
        )
    length = model.cfg.max_length
    rows, new = [list(p) for p in prompts], [[] for _ in prompts]
    key = jax.random.key(seed)
    while (done := min(len(n) for n in new)) < max_new_tokens:
        contexts = [row if len(row) < length else row[-max(length // 2, 1) :] for row in rows]
        longest = max(len(c) for c in contexts)
        tokens = np.zeros((len(rows), _round_up(longest, length)), np.int32)
        for row, context in zip(tokens, contexts, strict=True):
            row[: len(context)] = context
        steps = min(max_new_tokens - done, length - longest)
        ended = jnp.array([n[-1:] == [eos_id] for n in new])
        found = _continue(
            model, params, tokens, jnp.array([len(c) for c in contexts]), ended, key, done,
            steps, eos_id, temperature, top_k, top_p,
        )  # fmt: skip
        for row, more, fresh in zip(rows, new, np.asarray(found).tolist(), strict=True):
            row += fresh
            more += fresh
        if all(eos_id in n for n in new):
            break
    return [n[: n.index(eos_id) + 1] if eos_id in n else n for n in new]


def _round_up(n: int, most: int) -> int:
    """Prompt lengths come in few sizes, so that few programs are compiled."""
    return min(1 << (n - 1).bit_length(), most)


@partial(jax.jit, static_argnums=(0, 7, 8, 9, 10, 11))
def _continue(
    model, params, tokens, lengths, ended, key, start, steps, eos_id, temperature, top_k, top_p
):
    """[B, T] tokens of given lengths -> [B, steps] further ones; eos_id fills ended rows."""
    B, T = tokens.shape
    cache_length = min(T + steps, model.cfg.max_length)
    run = partial(model.apply, cache_length=cache_length, method="step", mutable=["cache"])
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    # Rows shorter than T leave padding in the cache behind them; each later token overwrites one
    # such slot before any query can see it.
    outputs, variables = run({"params": params}, tokens, positions)
    last = jnp.take_along_axis(outputs.hidden, lengths[:, None, None] - 1, axis=1)
    rows = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(B))

    def pick(outputs, index):
        keys = jax.vmap(lambda k: jax.random.fold_in(k, start + index))(rows)
        return choose(models.logits(outputs)[:, 0], keys, temperature, top_k, top_p)

    def going(carry):
        index, _, _, _, ended = carry
        return (index < steps) & ~ended.all()

    def step(carry):
        index, logits_from, cache, found, ended = carry
        token = jnp.where(ended, eos_id, pick(outputs._replace(hidden=logits_from), index))
        found = found.at[:, index].set(token)
        ended |= token == eos_id
        out, new = run({"params": params, **cache}, token[:, None], (lengths + index)[:, None])
        return index + 1, out.hidden, new, found, ended

    found = jnp.full((B, steps), eos_id, jnp.int32)
    return jax.lax.while_loop(going, step, (0, last, variables, found, ended))[3]


def choose(
    logits: jax.Array, keys: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """One id a row of logits [B, V]: greedy at temperature 0, else sampled with keys [B].

    top_k keeps the k likeliest; top_p the smallest set whose probability reaches p (Holtzman
    2020, 3.1), the likeliest always included.
    """
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

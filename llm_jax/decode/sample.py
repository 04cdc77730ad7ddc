"""Greedy decoding and sampling (temperature, top-k, top-p), jitted."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.decode.cache import Reader, cacheable, check, encoder_batch, pad, round_up
from llm_jax.models import Model


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sources: Sequence[Sequence[int]] | None = None,
    eos_id: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    prefix: bool = False,
    cached: bool | None = None,
) -> list[list[int]]:
    """Continues each prompt by up to max_new_tokens ids, ending after eos_id where it comes.

    Prompts may differ in length. temperature 0 is greedy; top_k 0 and top_p 1 cut nothing off.
    A row's samples depend on (seed, row, index) alone. Whenever a sequence outgrows
    model.max_length, the first max_length / 2 of the tokens it looks at are forgotten.

    Args:
      sources: what an encoder-decoder's encoder reads, one for each prompt.
      prefix: prompts see themselves in both directions, as a prefix language model learns.
      cached: keep keys and values; None: where the attention can. False reads everything again
        at each step: slow, and the same tokens.

    Raises:
      ValueError: an empty or too long prompt or source, or a setting out of range.
    """
    check(model, prompts, sources, max_new_tokens)
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: need temperature >= 0, "
            "top_k >= 0, 0 < top_p <= 1"
        )
    length = model.cfg.max_length
    cached = cacheable(model) if cached is None else cached
    source = encoder_batch(model, sources)
    # None leaves a piece out of the program; any other value is an argument of it.
    how = (temperature or None, top_k or None, top_p if top_p < 1 else None)
    rows, new = [list(p) for p in prompts], [[] for _ in prompts]
    while (done := min(map(len, new))) < max_new_tokens and not all(eos_id in n for n in new):
        contexts = [row[_forgotten(len(row), length) :] for row in rows]
        tokens, lengths = pad(contexts, length)
        steps = min(max_new_tokens - done, length - int(lengths.max()) + 1)
        found = _continue(
            model, round_up(max_new_tokens, length), cached, prefix, params, source, tokens,
            lengths, np.array([eos_id in n for n in new]), seed, done, steps, eos_id, how,
        )  # fmt: skip
        for row, more, fresh in zip(rows, new, np.asarray(found)[:, :steps].tolist(), strict=True):
            row += fresh
            more += fresh
    return [n[: n.index(eos_id) + 1] if eos_id in n else n for n in new]


def _forgotten(n: int, length: int) -> int:
    """Tokens of n that are no longer looked at: halves of `length`, whatever the batch mates do."""
    half = max(length // 2, 1)
    return max(-((length - n) // half), 0) * half


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _continue(
    model, room, cached, prefix, params, source, tokens, lengths, ended, seed, done, steps,
    eos_id, how,
):  # fmt: skip
    """Continues tokens [B, T] by `steps` of [B, room] ids; eos_id fills ended rows."""
    B, T = tokens.shape
    reader = Reader(model, params, source, min(T + room, model.cfg.max_length), cached, prefix)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(B))

    def pick(logits, index, found, ended):
        at = jax.vmap(partial(jax.random.fold_in, data=done + index))(keys)
        token = jnp.where(ended, eos_id, choose(logits, at, *how))
        return token, found.at[:, index].set(token), ended | (token == eos_id)

    def going(carry):
        index, _, _, _, ended = carry
        return (index < steps) & ~ended.all()

    def step(carry):
        index, token, cache, found, ended = carry
        logits, cache = reader.advance(cache, token, lengths + index - 1)
        token, found, ended = pick(logits, index, found, ended)
        return index + 1, token, cache, found, ended

    logits, cache = reader.start(tokens, lengths)
    found = jnp.full((B, room), eos_id, jnp.int32)
    token, found, ended = pick(logits, 0, found, ended)
    return jax.lax.while_loop(going, step, (1, token, cache, found, ended))[3]


def choose(
    logits: jax.Array,
    keys: jax.Array,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """One id a row of logits [B, V]: the likeliest without a temperature, else drawn by keys [B].

    top_k keeps the tokens that fewer than k others beat; top_p those that others of less than
    p in all beat (the nucleus of Holtzman 2020, 3.1), after top_k. Equals stay together.
    """
    if temperature is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None or top_p is not None:
        probability = jax.nn.softmax(logits, axis=-1)
        if top_k is not None:
            probability = _heads(probability, jnp.ones_like(probability), top_k)
        if top_p is not None:
            enough = top_p * probability.sum(-1, keepdims=True)
            probability = _heads(probability, probability, enough)
        logits = jnp.where(probability > 0, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _heads(probability: jax.Array, weight: jax.Array, enough: jax.Array | float) -> jax.Array:
    """Zeroes all but the likeliest tokens whose weights reach `enough`: [B, V] -> [B, V].

    The bits of floats >= 0 are in the order of the floats, so 31 halvings find the threshold,
    in a tenth of the time that sorting 50,000 tokens takes on a CPU.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)

    def halve(i, least):
        higher = least | (1 << (30 - i))
        total = jnp.sum(jnp.where(bits >= higher, weight, 0), -1, keepdims=True)
        return jnp.where(total >= enough, higher, least)

    least = jax.lax.fori_loop(0, 31, halve, jnp.zeros((len(bits), 1), jnp.int32))
    return jnp.where(bits >= least, probability, 0)

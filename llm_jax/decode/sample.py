"""Greedy decoding and sampling (temperature, top-k, top-p), jitted."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.decode.cache import pad, prepare, replicated
from llm_jax.models import Model

# Smaller numbers are 0 to XLA, larger ones infinite.
TINY, LARGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
SEEDS = 2**32


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    **inputs: Any,
) -> list[list[int]]:
    """Samples up to max_new_tokens ids behind each prompt, ending after an eos_id.

    Prompts may differ in length. temperature 0 is greedy; top_k 0 and top_p 1 cut nothing off.
    A row's samples depend on (seed, row, index) alone. Whenever a sequence outgrows
    model.max_length, the first max_length / 2 of the tokens it looks at are forgotten. `inputs`:
    sources, eos_id and the others of `cache.prepare`.

    Raises:
      ValueError: as `cache.prepare`, or a setting out of range.
    """
    if not (0 <= temperature <= LARGE and 0 <= top_k and 0 < top_p <= 1):
        raise ValueError(f"temperature={temperature}, top_k={top_k}, top_p={top_p}: need "
                         "temperature >= 0 and finite (float32), top_k >= 0, 0 < top_p <= 1")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed={seed}: must be in 0 … 2^32 - 1")
    reader, read, room = prepare(model, params, prompts, max_new_tokens, **inputs)
    length = model.cfg.max_length
    # None leaves a step out of the program; any other value is an argument of it.
    draw = (
        max(temperature, TINY) if temperature else None,
        min(top_k, model.cfg.vocab_size) or None,
        top_p if top_p < 1 else None,
    )
    ends = set(read.eos.tolist())
    rows, new = [list(p) for p in prompts], [[] for _ in prompts]
    ended = np.zeros(len(prompts), bool)
    while (done := min(map(len, new))) < max_new_tokens and not ended.all():
        contexts = [row[_forgotten(len(row), length) :] for row in rows]
        tokens, lengths = pad(contexts, length)
        steps = min(max_new_tokens - done, length - int(lengths.max()) + 1)
        reader = dataclasses.replace(reader, size=min(tokens.shape[1] + room, length))
        read = read._replace(tokens=replicated(tokens), lengths=replicated(lengths))
        ids = _continue(reader, read, room, replicated(ended), np.uint32(seed), done, steps, draw)
        for row, written, fresh in zip(rows, new, np.asarray(ids)[:, :steps].tolist(), strict=True):
            row += fresh
            written += fresh
        ended = np.array([not ends.isdisjoint(written) for written in new])
    return [_until(ends, written) for written in new]


def _until(ends: set[int], ids: list[int]) -> list[int]:
    """The ids up to and with the first that is an end."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def _forgotten(n: int, length: int) -> int:
    """Tokens of n that are no longer looked at: length / 2 at a time, whatever other rows need."""
    half = max(length // 2, 1)
    return max(-((length - n) // half), 0) * half


@partial(jax.jit, static_argnums=2)
def _continue(reader, prompts, room, ended, seed, done, steps, draw):
    """Continues tokens [B, T] by `steps` of [B, room] ids; an eos fills ended rows."""
    tokens, lengths, eos = prompts
    B = len(tokens)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(B))

    def pick(logits, index, ids, ended):
        at = jax.vmap(partial(jax.random.fold_in, data=done + index))(keys)
        token = jnp.where(ended, eos[0], choose(logits, at, *draw))
        ended |= (token[:, None] == eos).any(-1)
        return token, ids.at[:, index].set(token), ended

    def going(carry):
        index, _, _, _, ended = carry
        return (index < steps) & ~ended.all()

    def step(carry):
        index, token, cache, ids, ended = carry
        logits, cache = reader.advance(cache, token, lengths + index - 1)
        token, ids, ended = pick(logits, index, ids, ended)
        return index + 1, token, cache, ids, ended

    logits, cache = reader.start(tokens, lengths)
    ids = jnp.full((B, room), eos[0], jnp.int32)
    token, ids, ended = pick(logits, 0, ids, ended)
    return replicated(jax.lax.while_loop(going, step, (1, token, cache, ids, ended))[3])


def choose(
    logits: jax.Array,
    keys: jax.Array,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Samples one id a row of logits [B, V] by keys [B]; without a temperature, the argmax.

    top_k keeps the k likeliest tokens; top_p (nucleus sampling, Holtzman 2020, 3.1), after it, the
    fewest likeliest tokens whose probabilities reach p. Tokens as likely as the last one that is
    kept are kept too. temperature is at least float32's smallest normal number.
    """
    if temperature is None:
        return logits.argmax(-1).astype(jnp.int32)
    # The largest is 0 at any temperature, and so never inf - inf.
    logits = (logits - logits.max(-1, keepdims=True)) / temperature
    if top_k is not None or top_p is not None:
        probability = jax.nn.softmax(logits, axis=-1)
        if top_k is not None:
            probability = _keep_likeliest(probability, jnp.ones_like(probability), top_k)
        if top_p is not None:
            enough = top_p * probability.sum(-1, keepdims=True)
            probability = _keep_likeliest(probability, probability, enough)
        logits = jnp.where(probability > 0, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _keep_likeliest(
    probability: jax.Array, weight: jax.Array, enough: jax.Array | float
) -> jax.Array:
    """Top-k and top-p filter: zeroes all but the likeliest tokens whose weights reach `enough`.

    All are [B, V]. The bits of floats >= 0 are in the order of the floats, so 31 halvings find
    the threshold, in a tenth of the time that sorting 50,000 tokens takes on a CPU. At least the
    likeliest token is kept, however small `enough` is.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)

    def halve(i, least):
        higher = least | (1 << (30 - i))
        total = jnp.sum(jnp.where(bits >= higher, weight, 0), -1, keepdims=True)
        return jnp.where((total >= enough) & (total > 0), higher, least)

    least = jax.lax.fori_loop(0, 31, halve, jnp.zeros((len(bits), 1), jnp.int32))
    return jnp.where(bits >= least, probability, 0)

"""Greedy decoding and sampling (temperature, top-k, top-p, min-p), jitted."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.decode.cache import Memory, pad, prepare, replicated, resumable
from llm_jax.decode.rules import Rules
from llm_jax.models import Model

TINY = float(np.finfo(np.float32).tiny)  # XLA flushes smaller numbers to 0


def generate(model: Model, params: Any, prompts: Sequence, **settings: Any) -> list[list[int]]:
    """Samples up to max_new_tokens ids after each prompt; see `stream` for the settings."""
    *_, rows = stream(model, params, prompts, **settings)
    return rows


def stream(
    model: Model, params: Any, prompts: Sequence[Sequence[int]],
    *, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    min_p: float = 0.0, repetition_penalty: float = 1.0, min_new_tokens: int | Sequence[int] = 0,
    seed: int = 0, draws: Sequence[int] | None = None,
    stop: Callable[[Sequence[int], list[int]], int | None] | None = None, every: int | None = None,
    memory: Memory | None = None, window: Callable | None = None, **inputs: Any,
) -> Iterator[list[list[int]]]:
    """Yields the ids sampled so far after each prompt, every `every` tokens and at the end.

    Prompts may differ in length. A row ends after an eos_id or max_new_tokens. temperature 0 is
    greedy; top_k 0, top_p 1 and min_p 0 disable the filters. When a sequence exceeds
    model.max_length, the first max_length / 2 tokens of its context are dropped.

    Args:
      repetition_penalty, min_new_tokens: see `Rules`; the latter may differ between rows.
      draws: a number per row, by default its index: samples of a row depend only on (seed, number,
        position).
      stop: (prompt, ids so far) -> number of ids to keep if the text ends there; else None.
      every: None: once, at the end; 8 if there is a `stop`.
      memory: for a single prompt: reuses the KV cache of a common prefix, and stores the new one.
      window: generates until a context is full, as `_window` does; None: that, token by token.
      inputs: sources, eos_id and other arguments of `cache.prepare`.
    """
    choice = _choice(temperature, top_k, top_p, min_p, model.cfg.vocab_size)
    reader, read, room = prepare(model, params, prompts, max_new_tokens, **inputs)
    rules = Rules.of(repetition_penalty, min_new_tokens, len(prompts))
    length, vocabulary = model.cfg.max_length, model.cfg.vocab_size
    numbers = np.array(range(len(prompts)) if draws is None else draws, np.int32)
    every = every or (8 if stop else max_new_tokens)
    text = _Written(prompts, set(read.eos.tolist()), stop)
    memory = memory if len(prompts) == 1 and resumable(reader) else None
    done = 0
    while done < max_new_tokens and not text.ended.all():
        rows = [[*prompt, *ids] for prompt, ids in zip(prompts, text.ids, strict=True)]
        contexts = [row[_forgotten(len(row), length) :] for row in rows]
        draw = _Draw(*replicated((np.uint32(seed), numbers)), done, choice, rules)
        seen, left = replicated(rules.seen(rows, vocabulary)), max_new_tokens - done
        done += yield from (window or _window)(reader, read, room, contexts, seen, draw, text,
                                               left, every, memory)  # fmt: skip


def _window(reader, read, room, contexts, seen, draw, text, left, every, memory):
    """Samples up to `left` ids after contexts until one is full; yields `text`, returns how many.

    With the arguments of `stream` and `_begin`.
    """
    length = reader.model.cfg.max_length
    tokens, lengths = pad(contexts, length)
    steps = min(left, length - int(lengths.max()) + 1)
    size, cache, first = min(tokens.shape[1] + room, length), None, 0
    if memory:
        size, cache, first = memory.take(contexts[0], size, length)
        if not resumable(dataclasses.replace(reader, size=size)):
            cache, first = None, 0
        tokens, _ = pad([contexts[0][first:]], length)
    reader = dataclasses.replace(reader, size=size)
    read = read._replace(tokens=replicated(tokens), lengths=replicated(lengths))
    over = replicated(text.ended.copy())
    state, cache = _begin(reader, read, room, over, seen, draw, cache, first)
    until = 1
    while True:
        text.take(np.asarray(state.ids)[:, :until].tolist(), draw.done)
        if memory:
            memory.ids, memory.cache = [*contexts[0], *text.ids[0][draw.done :]][:-1], cache
        yield text.ids
        if until == steps or text.ended.all():
            return until
        until = min(until + every, steps)
        if memory:
            memory.cache = None  # it is donated
        state = state._replace(ended=replicated(text.ended.copy()))
        state, cache = _go_on(reader, read, cache, state, until, draw)


class _Written:
    """The ids after each prompt, and which rows have ended [B]."""

    def __init__(self, prompts: Sequence, ends: set[int], stop: Callable | None):
        self.prompts, self.ends, self.stop = prompts, ends, stop
        self.ids, self.ended = [[] for _ in prompts], np.zeros(len(prompts), bool)

    def take(self, fresh: list[list[int]], done: int) -> None:
        """Appends the ids generated for each row after the first `done` ids."""
        for i in np.flatnonzero(~self.ended):
            end = next((n for n, token in enumerate(fresh[i]) if token in self.ends), None)
            self.ids[i][done:] = fresh[i] if end is None else fresh[i][: end + 1]
            kept = self.stop(self.prompts[i], self.ids[i]) if self.stop else None
            if kept is not None:
                del self.ids[i][kept:]
            self.ended[i] = end is not None or kept is not None


def _choice(temperature, top_k, top_p, min_p, vocabulary) -> tuple:
    """Returns the settings of `filtered`: None omits a filter from the program."""
    return (
        max(temperature, TINY) if temperature else None,
        min(top_k, vocabulary) or None,
        top_p if top_p < 1 else None,
        max(min_p, TINY) if min_p else None,
    )


def _forgotten(n: int, length: int) -> int:
    """Returns how many of n tokens are dropped from the context, which moves by length / 2."""
    half = max(length // 2, 1)
    return max(-((length - n) // half), 0) * half


class _Draw(NamedTuple):
    """Sampling settings of the next token."""

    seed: Any
    numbers: Any  # row numbers [B]
    done: Any  # tokens generated before this program
    choice: tuple  # settings of `filtered`
    rules: Rules

    def keys(self, index: Any) -> jax.Array:
        """Returns the random keys [B] of the tokens at `index`, a number or one per row [B]."""
        key = jax.random.key(self.seed)
        fold = lambda number, at: jax.random.fold_in(jax.random.fold_in(key, number), at)
        return jax.vmap(fold)(self.numbers, jnp.broadcast_to(index, self.numbers.shape))


class _State(NamedTuple):
    """Loop state besides the KV cache."""

    index: Any  # number of tokens generated
    token: Any  # last token [B], not yet in the cache
    ids: Any  # [B, room]; ended rows are padded with eos
    ended: Any  # bool [B]
    seen: Any  # state of the rules


def _pick(read, logits, index, ids, ended, seen, draw: _Draw) -> _State:
    """Samples the token at `index` of each row."""
    at = draw.done + index
    logits = draw.rules.apply(logits, seen, at, read.eos)
    token = choose(logits, draw.keys(at), *draw.choice)
    token = jnp.where(ended, read.eos[0], token)
    ended |= (token[:, None] == read.eos).any(-1)
    seen = draw.rules.saw(seen, token)
    return _State(index + 1, token, ids.at[:, index].set(token), ended, seen)


@partial(jax.jit, static_argnums=2, donate_argnums=6)
def _begin(reader, read, room, ended, seen, draw, cache, first):
    """Prefills prompts [B, T] and samples the first token."""
    logits, cache = reader.start(read.tokens, read.lengths, cache, first)
    ids = jnp.full((len(read.tokens), room), read.eos[0], jnp.int32)
    state = _pick(read, logits, jnp.int32(0), ids, ended, seen, draw)
    return state._replace(ids=replicated(state.ids)), cache


@partial(jax.jit, donate_argnums=2)
def _go_on(reader, read, cache, state, until, draw):
    """Generates until there are `until` tokens, or all rows have ended."""

    def step(carry):
        state, cache = carry
        logits, cache = reader.advance(cache, state.token, read.lengths + state.index - 1)
        return _pick(read, logits, state.index, state.ids, state.ended, state.seen, draw), cache

    going = lambda carry: (carry[0].index < until) & ~carry[0].ended.all()
    state, cache = jax.lax.while_loop(going, step, (state, cache))
    return state._replace(ids=replicated(state.ids)), cache


def choose(
    logits: jax.Array, keys: jax.Array, temperature: float | None = None, *filters: Any, **more: Any
) -> jax.Array:
    """Samples an id per row from `filtered` logits [B, V] with keys [B]."""
    if temperature is None:
        return logits.argmax(-1).astype(jnp.int32)
    return categorical(keys, filtered(logits, temperature, *filters, **more))


def categorical(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """Samples an id per row from logits [B, V] with keys [B]."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def filtered(
    logits: jax.Array, temperature: float | None = None, top_k: int | None = None,
    top_p: float | None = None, min_p: float | None = None,
) -> jax.Array:
    """Logits [B, V] of the distribution to sample from: -inf for ids that are filtered out.

    Without temperature, only the argmax is left. top_k keeps the k most likely tokens; then top_p
    (nucleus sampling, Holtzman 2020, 3.1) keeps the smallest set of most likely tokens with total
    probability p; min_p (Nguyen 2024, arXiv:2407.01082) keeps tokens with at least min_p times the
    maximum probability. Ties with the last kept token are kept too. temperature and min_p must be
    normal float32 numbers.
    """
    if temperature is None:
        best = logits.argmax(-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    # The maximum is 0 at any temperature, which avoids inf - inf; -inf is kept, even if XLA
    # multiplies by 1 / temperature and that underflows to 0.
    logits -= logits.max(-1, keepdims=True)
    logits = jnp.where(jnp.isneginf(logits), logits, logits / temperature)
    if top_k is not None or top_p is not None:
        probability = jax.nn.softmax(logits, axis=-1)
        if top_k is not None:
            probability = _keep_likeliest(probability, jnp.ones_like(probability), top_k)
        if top_p is not None:
            enough = top_p * probability.sum(-1, keepdims=True)
            probability = _keep_likeliest(probability, probability, enough)
        logits = jnp.where(probability > 0, logits, -jnp.inf)
    if min_p is not None:
        logits = jnp.where(logits >= jnp.log(min_p), logits, -jnp.inf)
    return logits


def _keep_likeliest(
    probability: jax.Array, weight: jax.Array, enough: jax.Array | float
) -> jax.Array:
    """Top-k and top-p filter: keeps the most likely tokens until their weights reach `enough`.

    All are [B, V]. The bit patterns of floats >= 0 have the order of the floats, so that 31 steps
    of bisection find the threshold, ten times faster than sorting 50,000 tokens on a CPU. The most
    likely token is always kept.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)

    def halve(i, least):
        higher = least | (1 << (30 - i))
        total = jnp.sum(jnp.where(bits >= higher, weight, 0), -1, keepdims=True)
        return jnp.where((total >= enough) & (total > 0), higher, least)

    least = jax.lax.fori_loop(0, 31, halve, jnp.zeros((len(bits), 1), jnp.int32))
    return jnp.where(bits >= least, probability, 0)

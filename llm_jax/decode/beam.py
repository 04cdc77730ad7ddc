"""Beam search with a length penalty, jitted, for decoders and encoder-decoders."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config import ConfigError
from llm_jax.decode.cache import prepare, replicated
from llm_jax.decode.rules import Rules
from llm_jax.models import Model


class Hypothesis(NamedTuple):
    """A finished continuation; score = log-probability / length penalty."""

    tokens: list[int]
    score: float


def beam_search(
    model: Model, params: Any, prompts: Sequence[Sequence[int]],
    *, max_new_tokens: int, beams: int = 4, length_penalty: float = 0.6,
    repetition_penalty: float = 1.0, min_new_tokens: int | Sequence[int] = 0, **inputs: Any,
) -> list[list[Hypothesis]]:
    """Beam search: returns the `beams` best continuations found for each prompt, best first.

    A continuation ends with an eos_id or after max_new_tokens. Its log-probability is divided by
    ((5 + tokens) / 6)^length_penalty, counting eos_id (Wu 2016, equation 14, without coverage;
    Vaswani 2017, 6.1 uses 4 beams and 0.6). `transformers` divides by tokens^length_penalty: they
    agree for 0. repetition_penalty, min_new_tokens: see `Rules`. `inputs`: sources, eos_id and
    other arguments of `cache.prepare`.

    Raises:
      ConfigError: more tokens than model.max_length.
    """
    reader, rows, room = prepare(model, params, prompts, max_new_tokens, **inputs)
    length, longest = model.cfg.max_length, max(map(len, prompts))
    if longest + max_new_tokens - 1 > length:
        raise ConfigError(f"max_new_tokens={max_new_tokens}: after a prompt of {longest} tokens, "
                          f"model.max_length={length} leaves room for {length - longest + 1}")
    rules = Rules.of(repetition_penalty, min_new_tokens, len(prompts))
    seen = replicated(rules.seen(prompts, model.cfg.vocab_size))
    best = _search(reader, rows, beams, room, max_new_tokens, length_penalty, rules, seen)
    ids, scores = map(np.asarray, best)
    return [
        [
            Hypothesis([t for t in row if t >= 0], score)
            for row, score in zip(rows[real].tolist(), of_rows[real].tolist(), strict=True)
        ]
        for rows, of_rows, real in zip(ids, scores, np.isfinite(scores), strict=True)
    ]


@partial(jax.jit, static_argnums=(2, 3))
def _search(reader, prompts, beams, room, steps, alpha, rules, seen):
    """Prompts [B, T] -> ids [B, beams, room], padded with -1, and scores [B, beams]."""
    B, lengths, eos = len(prompts.tokens), prompts.lengths, prompts.eos
    penalty = lambda n: ((5 + n) / 6) ** alpha
    candidates = min(1 + len(eos), reader.model.cfg.vocab_size) * beams
    ahead = jnp.arange(candidates) < beams

    def expand(index, logits, live, scores, done, best, seen):
        """Expands all live beams: keeps the best unfinished and the best finished ones.

        logits, seen [B, beams, V]; live and done [B, beams, room]; scores and best [B, beams].
        """
        chances = rules.apply(jax.nn.log_softmax(logits, axis=-1), seen, index, eos)
        total = scores[..., None] + chances
        # At most E candidates per beam end: (1 + E) times as many leave enough unfinished ones.
        total, choice = jax.lax.top_k(total.reshape(B, -1), candidates)
        parent, token = choice // logits.shape[-1], choice % logits.shape[-1]
        ended = (token[..., None] == eos).any(-1)
        rows = _rows(live, parent).at[:, :, index].set(token)
        # Candidates after the first `beams` only replace finished ones.
        final = jnp.where(ended & ahead, total / penalty(index + 1), -jnp.inf)
        best, keep = jax.lax.top_k(jnp.concatenate([best, final], axis=1), beams)
        done = _rows(jnp.concatenate([done, rows], axis=1), keep)
        scores, keep = jax.lax.top_k(jnp.where(ended, -jnp.inf, total), beams)
        parent, token = _rows(parent, keep), _rows(token, keep)
        seen = None if seen is None else rules.saw(_rows(seen, parent), token)
        return _rows(rows, keep), scores, done, best, seen, parent

    def going(carry):
        index, _, _, scores, _, best, *_ = carry
        # Bound of live beams: log-probabilities decrease, and the penalty is largest at the end.
        return (index < steps) & (scores[:, 0] / penalty(steps) > best[:, -1]).any()

    def step(carry):
        index, cache, live, scores, done, best, seen, parent = carry
        cache = _follow(cache, parent)
        at = jnp.repeat(lengths + index - 1, beams)
        logits, cache = wide.advance(cache, live[:, :, index - 1].reshape(-1), at)
        logits = logits.reshape(B, beams, -1)
        return index + 1, cache, *expand(index, logits, live, scores, done, best, seen)

    logits, cache = reader.start(prompts.tokens, lengths)
    wide, cache = reader.widen(cache, beams)
    none = jnp.full((B, beams), -jnp.inf)
    blank = jnp.full((B, beams, room), -1, jnp.int32)
    wide_of = lambda x: None if x is None else jnp.repeat(x[:, None], beams, axis=1)
    start = none.at[:, 0].set(0.0)
    first = expand(0, wide_of(logits), blank, start, blank, none, wide_of(seen))
    carry = jax.lax.while_loop(going, step, (1, cache, *first))
    _, _, live, scores, done, best, *_ = carry
    # Live beams have the maximum length now, or cannot win.
    best, keep = jax.lax.top_k(jnp.concatenate([best, scores / penalty(steps)], axis=1), beams)
    return replicated((_rows(jnp.concatenate([done, live], axis=1), keep), best))


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, n, ...] at index [B, m] -> [B, m, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _follow(cache: Any, parent: jax.Array) -> Any:
    """Gathers the cache of each beam's parent [B, beams]; cross-attention caches are shared."""
    B, beams = parent.shape
    rows = (jnp.arange(B)[:, None] * beams + parent).reshape(-1)

    def take(path, x):
        shared = any("cross_attention" in str(part) for part in path)
        return x if shared else jnp.take(x, rows, axis=0)

    return jax.tree_util.tree_map_with_path(take, cache)

"""Speculative decoding: a small draft model proposes tokens, the model accepts or replaces them."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.decode.cache import irreversible, prepare, replicated, size_of
from llm_jax.decode.sample import categorical, filtered
from llm_jax.models import Model

PROPOSE, ACCEPT, REPLACE = range(3)  # what a random number of a token is for


class Draft(NamedTuple):
    """A draft model; `llm_jax.load` returns an object with the same attributes."""

    model: Model
    params: Any
    tokenizer: Tokenizer


def check(
    cfg: FrozenConfigDict, tokenizer: Tokenizer, draft: Draft, longest: int, new: int
) -> None:
    """Raises ConfigError if `draft` cannot propose `new` tokens after prompts of `longest`."""
    theirs = draft.model.cfg
    if draft.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise ConfigError("draft: its tokenizer differs from the model's; both must be equal")
    if theirs.vocab_size != cfg.vocab_size:
        raise ConfigError(f"draft: its model.vocab_size={theirs.vocab_size} differs from the "
                          f"model's {cfg.vocab_size}; both must be equal")
    for whose, of in (("model", cfg), ("draft model", theirs)):
        length = of.max_length
        problem = irreversible(of, size_of(longest, new, length))
        if longest + new - 1 > length:
            problem = (f"max_new_tokens={new}: after a prompt of {longest} tokens, "
                       f"model.max_length={length} leaves room for {length - longest + 1}")
        if problem:
            raise ConfigError(f"draft: no speculative decoding, since of the {whose} {problem}")


@dataclasses.dataclass
class Speculation:
    """Speculative decoding, the `window` of `sample.stream` for a text that fits into a context.

    In a round, the draft model samples `count` tokens x_1 … x_K from its distributions q, and one
    forward pass of the model computes its own, p, for the same positions and the next. x_i is
    accepted with probability min(1, p(x_i) / q(x_i)). The first rejected token is replaced by one
    sampled from max(0, p - q), normalised; if none is, one more is sampled from p. The texts have
    exactly the distribution of the model alone (Leviathan 2023, https://arxiv.org/abs/2211.17192,
    algorithm 1 and appendix A.1; Chen 2023, https://arxiv.org/abs/2302.01318, algorithm 2 and
    theorem 1). Temperature, filters and rules change p and q alike, and a greedy distribution has
    one token. Rows advance by different numbers of tokens.

    Attributes:
      count: tokens proposed in a round.
      rounds: forward passes of the model after the prompt [B], of the last texts.
      accepted: their proposed tokens [B]; the others are the model's own.
    """

    draft: Draft
    count: int
    rounds: Any = None
    accepted: Any = None

    def __call__(self, reader, read, room, contexts, seen, draw, text, left, *_):
        """Yields the ids after each prompt, round by round; see `sample._window`."""
        ahead, theirs, _ = prepare(self.draft.model, self.draft.params, contexts, left,
                                   allowed=reader.allowed)  # fmt: skip
        caches = _prefill(reader, *read[:2]), _prefill(ahead, *theirs[:2])
        start = np.array([len(row) for row in contexts], np.int32)
        index, first = np.zeros_like(start), start - 1
        self.rounds, self.accepted = np.zeros_like(start), np.zeros_like(start)
        while not text.ended.all():
            texts = [[*row, *ids] for row, ids in zip(contexts, text.ids, strict=True)]
            tail = np.array([[*row[at:], 0][:2] for row, at in zip(texts, first, strict=True)])
            seen = draw.rules.seen(texts, reader.model.cfg.vocab_size)
            rows = replicated((tail, first, start + index, index, seen))
            *found, caches = _round(self.count, reader, ahead, caches, *rows, draw, read.eos)
            tokens, taken = map(np.asarray, found)
            most = np.minimum(taken + 1, left - index)
            self.rounds += ~text.ended
            text.take([row[:n] for row, n in zip(tokens.tolist(), most, strict=True)], left)
            before, index = index, np.array([len(ids) for ids in text.ids], np.int32)
            self.accepted += np.minimum(taken, index - before)
            text.ended |= index == left
            # The draft model has read the round's tokens except the last one that it proposed.
            first = np.minimum(start + index, start + before + self.count) - 1
            yield text.ids
        return left


@jax.jit
def _prefill(reader, tokens, lengths):
    """Returns the cache of prompts [B, T]."""
    return reader.start(tokens, lengths)[1]


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _round(count, target, draft, caches, tail, first, lengths, index, seen, draw, eos):
    """One round: the next tokens [B, count + 1], the number accepted [B], and the caches.

    The first accepted + 1 tokens of a row are valid.

    Args:
      tail: the last one or two tokens of each row [B, 2], which the draft model has not read, from
        position `first` [B].
      lengths, index: number of tokens [B], and of those the generated ones.
      seen: state of the rules.
    """

    def distribution(logits, seen, index):
        """Probabilities [B, V] of the token at `index` [B], under the sampling settings."""
        logits = draw.rules.apply(logits, seen, index, eos)
        return jax.nn.softmax(filtered(logits, *draw.choice), axis=-1)

    def keys(index, use):
        # A position after a rejected token is drawn again, with the same keys: no token that was
        # kept depends on the first draw.
        return jax.vmap(jax.random.fold_in, (0, None))(draw.keys(index), use)

    def propose(logits, seen, j):
        q = distribution(logits, seen, index + j)
        token = categorical(keys(index + j, PROPOSE), jnp.log(q))
        return token, draw.rules.saw(seen, token), q

    def step(carry, j):
        cache, token, seen = carry
        logits, cache = draft.advance(cache, token, lengths + j - 1)
        token, seen, q = propose(logits, seen, j)
        return (cache, token, seen), (token, seen, q)

    logits, cache = draft.start(tail, lengths, caches[1], first)
    one = propose(logits, seen, 0)
    (cache, *_), others = jax.lax.scan(step, (cache, *one[:2]), jnp.arange(1, count))
    join = lambda x, more: jnp.concatenate([x[:, None], more.swapaxes(0, 1)], axis=1)
    proposed, after, q = jax.tree.map(join, one, others)  # [B, count], [B, count, V]
    pair = lambda x, more: jnp.concatenate([x[:, None], more], axis=1)
    seen = jax.tree.map(pair, seen, after)
    last, ahead = tail[jnp.arange(len(tail)), lengths - first - 1], jnp.arange(count + 1)
    logits, own = target.extend(caches[0], pair(last, proposed), (lengths - 1)[:, None] + ahead)
    p = jax.vmap(distribution, 1, 1)(logits, seen, index[:, None] + ahead)
    q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # nothing is proposed after the last
    of = lambda x: jnp.take_along_axis(x[:, :count], proposed[..., None], axis=2)[..., 0]
    chance = lambda j: jax.vmap(jax.random.uniform)(keys(index + j, ACCEPT))
    accepts = jax.vmap(chance, out_axes=1)(ahead[:count]) * of(q) < of(p)
    taken = jnp.cumprod(accepts, axis=1).sum(1)
    here = lambda x: x[jnp.arange(len(x)), taken]
    left = jnp.maximum(here(p) - here(q), 0)
    left = jnp.where(left.any(-1, keepdims=True), left, here(p))  # p = q up to rounding
    other = categorical(keys(index + taken, REPLACE), jnp.log(left))
    tokens = jnp.where(ahead == taken[:, None], other[:, None], jnp.pad(proposed, ((0, 0), (0, 1))))
    return *replicated((tokens, taken)), (own, cache)

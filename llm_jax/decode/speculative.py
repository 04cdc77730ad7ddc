"""Speculative decoding: a small draft model proposes tokens, the model accepts or replaces them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from llm_jax import config as configs
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.decode.cache import irreversible, prepare, replicated, size_of
from llm_jax.decode.sample import begin, categorical, filtered
from llm_jax.models import Model

PROPOSE, ACCEPT, REPLACE = range(3)  # what a random number of a token is for


class Draft(NamedTuple):
    """A draft model; `llm_jax.load` returns an object with the same attributes."""

    model: Model
    params: Any
    tokenizer: Tokenizer


class Progress(NamedTuple):
    """What speculative decoding has generated so far."""

    ids: list[list[int]]  # after each prompt
    rounds: np.ndarray  # forward passes of the model after the prompt [B]
    accepted: np.ndarray  # tokens proposed by the draft model [B]; the others are the model's own


class _Rows(NamedTuple):
    """The rows at the beginning of a round."""

    tail: Any  # the last one or two tokens, which the draft model has not read [B, 2]
    first: Any  # position of the first of them [B]
    lengths: Any  # number of tokens [B]
    index: Any  # number of tokens generated [B]
    seen: Any  # state of the rules


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
    for whose, of in (("the model", cfg), ("the draft model", theirs)):
        length = of.max_length
        problem = irreversible(of, size_of(longest, new, length))
        if of.kind != "decoder":
            problem = f"model.kind={of.kind!r} is not a decoder"
        elif longest + new - 1 > length:
            problem = (f"max_new_tokens={new}: after a prompt of {longest} tokens, "
                       f"model.max_length={length} leaves room for {length - longest + 1}")
        elif whose == "the model" and any(x.expert_capacity or x.expert_slots
                                          for x in configs.layers(of, of.num_layers)):
            # The tokens of a forward pass would compete for the experts' slots.
            problem = "model.expert_capacity and expert_slots depend on the tokens of a pass"
        if problem:
            raise ConfigError(f"draft: no speculative decoding, since of {whose} {problem}")


def stream(
    model: Model, params: Any, prompts: Sequence[Sequence[int]],
    *, draft: Draft, draft_tokens: int, max_new_tokens: int, **settings: Any,
) -> Iterator[Progress]:
    """Speculative sampling; yields what has been generated after each round.

    In a round, the draft model samples `draft_tokens` tokens x_1 … x_K from its distributions q,
    and one forward pass of the model computes its own, p, at all of them and after them. x_i is
    accepted with probability min(1, p(x_i) / q(x_i)). The first rejected token is replaced by one
    sampled from max(0, p - q), normalised; if none is, one more is sampled from p. The texts have
    exactly the distribution that the model has alone (Leviathan 2023,
    https://arxiv.org/abs/2211.17192, algorithm 1 and appendix A.1; Chen 2023,
    https://arxiv.org/abs/2302.01318, algorithm 2 and theorem 1). Temperature, filters and rules
    change p and q alike; greedy distributions have a single token. Rows accept different numbers.

    Args:
      settings: see `sample.begin`.
    """
    reader, read, _, draw, text = begin(model, params, prompts, max_new_tokens, **settings)
    ahead, theirs, _ = prepare(draft.model, draft.params, prompts, max_new_tokens,
                               allowed=reader.allowed)  # fmt: skip
    caches = _prefill(reader, *read[:2]), _prefill(ahead, *theirs[:2])
    start = np.array([len(prompt) for prompt in prompts], np.int32)
    index, first = np.zeros_like(start), start - 1
    done = Progress(text.ids, np.zeros_like(start), np.zeros_like(start))
    while not text.ended.all():
        texts = [[*prompt, *ids] for prompt, ids in zip(prompts, text.ids, strict=True)]
        tail = [[*row[at:], 0][:2] for row, at in zip(texts, first, strict=True)]
        seen = draw.rules.seen(texts, model.cfg.vocab_size)
        rows = replicated(_Rows(np.array(tail, np.int32), first, start + index, index, seen))
        *found, caches = _round(draft_tokens, reader, ahead, caches, rows, draw, read.eos)
        tokens, taken = map(np.asarray, found)
        most = np.minimum(taken + 1, max_new_tokens - index)
        done.rounds[~text.ended] += 1
        text.take([row[:n] for row, n in zip(tokens.tolist(), most, strict=True)], max_new_tokens)
        before, index = index, np.array([len(ids) for ids in text.ids], np.int32)
        done.accepted[:] += np.minimum(taken, index - before)
        text.ended |= index == max_new_tokens
        # The draft model has read the round's tokens except the last one that it proposed.
        first = np.minimum(start + index - 1, start + before - 1 + draft_tokens)
        yield done


@jax.jit
def _prefill(reader, tokens, lengths):
    """Returns the cache of prompts [B, T]."""
    return reader.start(tokens, lengths)[1]


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _round(count, target, draft, caches, rows, draw, eos):
    """One round: the next tokens [B, count + 1], the number accepted [B], and the caches.

    The first accepted + 1 tokens of a row are valid.
    """

    def distribution(logits, seen, index):
        """Probabilities [B, V] of the token at `index` [B], under the sampling settings."""
        logits = draw.rules.apply(logits, seen, index, eos)
        return jax.nn.softmax(filtered(logits, *draw.choice), axis=-1)

    def keys(index, use):
        return jax.vmap(jax.random.fold_in, (0, None))(draw.keys(index), use)

    def propose(logits, seen, j):
        index = rows.index + j
        q = distribution(logits, seen, index)
        token = categorical(keys(index, PROPOSE), jnp.log(q))
        return token, draw.rules.saw(seen, token), q

    def step(carry, j):
        cache, token, seen = carry
        logits, cache = draft.advance(cache, token, rows.lengths + j - 1)
        token, seen, q = propose(logits, seen, j)
        return (cache, token, seen), (token, seen, q)

    logits, cache = draft.start(rows.tail, rows.lengths, caches[1], rows.first)
    first = propose(logits, rows.seen, 0)
    (cache, *_), others = jax.lax.scan(step, (cache, *first[:2]), jnp.arange(1, count))
    join = lambda x, more: jnp.concatenate([x[:, None], more.swapaxes(0, 1)], axis=1)
    proposed, seen, q = jax.tree.map(join, first, others)  # [B, count], [B, count, V]
    last = jnp.take_along_axis(rows.tail, (rows.lengths - rows.first - 1)[:, None], axis=1)
    read = jnp.concatenate([last, proposed], axis=1)
    ahead = jnp.arange(count + 1)
    logits, own = target.extend(caches[0], read, (rows.lengths - 1)[:, None] + ahead)
    if seen is not None:
        seen = jnp.concatenate([rows.seen[:, None], seen], axis=1)
    p = jax.vmap(distribution, 1, 1)(logits, seen, rows.index[:, None] + ahead)
    q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # nothing is proposed after the last
    at = lambda x: jnp.take_along_axis(x[:, :count], proposed[..., None], axis=2)[..., 0]
    chance = lambda j: jax.vmap(jax.random.uniform)(keys(rows.index + j, ACCEPT))
    accepts = jax.vmap(chance, out_axes=1)(ahead[:count]) * at(q) < at(p)
    taken = jnp.cumprod(accepts, axis=1).sum(1)
    here = lambda x: jnp.take_along_axis(x, taken[:, None, None], axis=1)[:, 0]
    left = jnp.maximum(here(p) - here(q), 0)
    left = jnp.where(left.any(-1, keepdims=True), left, here(p))  # p = q up to rounding
    other = categorical(keys(rows.index + taken, REPLACE), jnp.log(left))
    tokens = jnp.pad(proposed, ((0, 0), (0, 1)))
    tokens = jnp.where(ahead == taken[:, None], other[:, None], tokens)
    return *replicated((tokens, taken)), (own, cache)

"""Text in, text out: what `launch.py generate` does for each kind of model."""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from llm_jax import models, objectives
from llm_jax.config import ConfigError
from llm_jax.data import chat
from llm_jax.data.tokenizers import MASKS, SENTINEL, Tokenizer
from llm_jax.decode import sample
from llm_jax.decode.beam import beam_search
from llm_jax.decode.fill import fill
from llm_jax.decode.request import Request
from llm_jax.decode.score import log_likelihoods
from llm_jax.models import Model
from llm_jax.objectives.masked_lm import mask_id

log = logging.getLogger(__name__)
Prompt = str | Sequence[dict[str, Any]] | Sequence[int]  # a text, messages, or ids


def complete(
    model: Model, params: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt],
    *, objective: ConfigDict | None = None, **settings: Any,
) -> list[dict]:
    """Generates text: for each prompt its samples, {prompt, completion, tokens} each.

    A decoder continues the prompt: prompt + completion is the whole text. A prompt may be ids,
    which are taken as they are, or messages, [{"role": …, "content": …}], which the tokenizer's
    chat template lays out; the completion is then the assistant's reply. An encoder-decoder reads
    the prompt and writes from the tokenizer's bos_id (pad where, as in T5, there is none). A masked
    model fills [MASK] or <mask>: `completion` and `tokens` are the prompt with each mask's best
    token, and `candidates` lists for each mask the top_k (0: 5) {token, text, probability}. Beam
    search adds `score`.

    Special tokens that a prompt spells are read as such, as transformers reads them (in training
    text they are text). Ids that no token of the tokenizer has are never drawn.

    Args:
      objective: config.objective, by which prompts are laid out as the model has learned them:
        with seq2seq's prefix in front, as a user's message where it learned chats, seen in both
        directions by a prefix language model.
      **settings: fields of Request.

    Raises:
      ConfigError: a model without logits of words, a prompt that it cannot take, or settings that
        do not go together.
    """
    rows = read(model.cfg, tokenizer, prompts, objective)
    request = _request(model, tokenizer, settings)
    write = _fill_gaps if model.cfg.kind == "encoder" else _write
    samples = write(model, params, tokenizer, rows, request, objective)
    first = ("prompt", "completion", "tokens")
    named = [{"prompt": p} | one for p, some in zip(prompts, samples, strict=True) for one in some]
    return [{name: sample[name] for name in first} | sample for sample in named]


def stream(
    model: Model, params: Any, tokenizer: Tokenizer, prompt: Prompt,
    *, objective: ConfigDict | None = None, **settings: Any,
) -> Iterator[str]:
    """Yields, as they are written, pieces of the completion that `complete` returns.

    What a stop string or a character may still need is held back.
    """
    rows = read(model.cfg, tokenizer, [prompt], objective)
    request = replace(_request(model, tokenizer, settings), samples=1)
    if request.beams > 1:
        raise ConfigError(f"beams={request.beams}: beam search has no text before its end")
    job = _job(model, tokenizer, rows, objective)
    inputs, shown = _inputs(model, tokenizer, job, request) | {"every": 1}, 0
    for (ids,) in sample.stream(model, params, job.rows, **inputs):
        text = _before(request.stop, job.spoken(job.rows[0], ids))
        sure = text.rstrip("\ufffd")
        stop_begins = (i for stop in request.stop for i in range(1, len(stop))
                 if sure.endswith(stop[:i]))  # fmt: skip
        sure = sure[: len(sure) - max(stop_begins, default=0)]
        if len(sure) > shown:
            yield sure[shown:]
            shown = len(sure)
    if len(text) > shown:
        yield text[shown:]


def _request(model: Model, tokenizer: Tokenizer, settings: dict[str, Any]) -> Request:
    """What is asked, checked and filled in."""
    request, kind = Request(**settings), model.cfg.kind
    request.check(kind)
    return request if kind == "encoder" else request.resolve(kind, tokenizer.generation)


def read(
    cfg: ConfigDict, tokenizer: Tokenizer, prompts: Sequence[Prompt], objective: ConfigDict | None
) -> list[list[int]]:
    """Returns the ids of each prompt as a model of config.model is given them; computes nothing.

    Raises:
      ConfigError: a model without logits of words; a prompt without a gap for a masked model, or
        of more tokens than model.max_length; messages for another than a decoder.
    """
    if not models.heads.speaks(cfg):
        raise ConfigError(f"model.head={cfg.head!r}: the model has no logits of words; it writes "
                          "no text and fills no gaps, which a head of lm or mlm does")
    lay_out = lambda text: text
    if cfg.kind == "encoder":
        mask = mask_id(tokenizer)
        name = tokenizer.pieces()[mask]
        lay_out = lambda text: re.sub("|".join(map(re.escape, MASKS)), lambda _: name, text)
    elif objective:
        lay_out = lambda text: objectives.get(objective.name).prompt(text, objective)
    before, behind = tokenizer.around(cfg.kind)
    rows = []
    for prompt in prompts:
        text = lay_out(prompt) if isinstance(prompt, str) else prompt
        if isinstance(text, str):
            row = [*before, *tokenizer.read(text), *behind]
        elif all(isinstance(i, int) for i in text):
            row = list(text)
        elif cfg.kind == "decoder":
            row = chat.prompt(tokenizer, text)
        else:
            raise ConfigError(f"prompt {prompt!r}: messages are for a decoder")
        if cfg.kind == "encoder" and mask not in row:
            raise ConfigError(f"prompt {prompt!r}: put {name} where the model is to fill in")
        if len(row) > cfg.max_length:
            raise ConfigError(f"prompt {str(prompt)[:60]!r}: has {len(row)} tokens; at most "
                              f"model.max_length={cfg.max_length}")
        rows.append(row or [tokenizer.bos_id])  # something must come first
    return rows


class _Job(NamedTuple):
    """What is to be continued."""

    rows: list[list[int]]
    spoken: Callable[[Sequence[int], list[int]], str]  # (row, ids behind it) -> their text
    sources: list[list[int]] | None = None  # an encoder's
    prefix: bool = False


def _job(model, tokenizer, rows, objective) -> _Job:
    if model.cfg.kind == "encoder_decoder":
        spoken = lambda row, ids: _with_sentinels(tokenizer, ids)
        return _Job([[tokenizer.bos_id] for _ in rows], spoken, rows)

    def spoken(row: Sequence[int], ids: list[int]) -> str:
        # Decoded apart, the space between prompt and completion would be lost.
        whole, start = tokenizer.decode([*row, *ids]), tokenizer.decode(row)
        return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids)

    prefix = bool(objective) and bool(objectives.get(objective.name).prefix)
    return _Job(rows, spoken, prefix=prefix)


def _inputs(model, tokenizer, job: _Job, request) -> dict[str, Any]:
    """Arguments of `sample.stream`, or `beam_search`, for all rows."""
    length, longest = model.cfg.max_length, max(map(len, job.rows))
    room = max(1, length - longest + 1)
    count = request.tokens(longest, room)
    names = ["repetition_penalty"]
    if request.beams > 1:
        names += ["beams", "length_penalty"]
    else:
        names += ["temperature", "top_k", "top_p", "min_p", "seed"]
        if count > room:
            log.warning("max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d "
                        "leaves room for %d; beyond that, the beginning is forgotten",
                        count, longest, length, room)
    inputs = {name: getattr(request, name) for name in names}
    if request.beams == 1:
        inputs |= {"stop": _stop(request.stop, job.spoken), "memory": request.memory}
    least = [max(request.min_new_tokens, request.min_length - len(row)) for row in job.rows]
    return inputs | {
        "max_new_tokens": count, "allowed": _allowed(model, tokenizer, request),
        "eos_id": tokenizer.eos_id if request.eos_ids is None else request.eos_ids,
        "sources": job.sources, "min_new_tokens": least, "prefix": job.prefix,
    }  # fmt: skip


def _write(model, params, tokenizer, rows, request, objective) -> list[list[dict]]:
    """The samples of each prompt: {tokens, completion}, with a beam's score."""
    job = _job(model, tokenizer, rows, objective)
    inputs = _inputs(model, tokenizer, job, request)
    copies = 1 if request.beams > 1 else request.samples
    of = [i for i in range(len(rows)) for _ in range(copies)]  # the prompt of each draw
    lengths = [len(row) for row in job.sources or job.rows]
    order = sorted(range(len(of)), key=lambda k: lengths[of[k]])
    samples = [[] for _ in rows]
    for at in range(0, len(order), request.batch_size):
        draws = order[at : at + request.batch_size]
        places = [of[k] for k in draws]
        take = lambda rows: rows and [rows[i] for i in places]  # noqa: B023
        each = {name: take(inputs[name]) for name in ("sources", "min_new_tokens")}
        given, settings = take(job.rows), inputs | each
        if request.beams > 1:
            best = beam_search(model, params, given, **settings)
            written = [[h._asdict() for h in beams[: request.samples]] for beams in best]
        else:
            ids = sample.generate(model, params, given, draws=draws, **settings)
            written = [[{"tokens": row}] for row in ids]
        for i, new in zip(places, written, strict=True):
            samples[i] += new
    for row, some in zip(job.rows, samples, strict=True):
        for one in some:
            one["completion"] = _before(request.stop, job.spoken(row, one["tokens"]))
    if request.scored and request.beams == 1:
        rows = [[*job.rows[i], *one["tokens"]] for i, some in enumerate(samples) for one in some]
        sources = job.sources and [job.sources[i] for i in of]
        starts = [len(job.rows[i]) for i in of]
        scores = log_likelihoods(model, params, rows, starts, sources=sources, prefix=job.prefix)
        for one, (score, _) in zip(itertools.chain(*samples), scores, strict=True):
            one["score"] = score
    return samples


def _before(stops: Sequence[str], text: str) -> str:
    """The text before the first of the stop strings."""
    return text[: min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


def _stop(stops: Sequence[str], spoken: Callable) -> Callable | None:
    """What `stream` asks for: how many ids there are when a stop string is complete."""
    if not stops:
        return None

    def stop(row: Sequence[int], ids: list[int]) -> int | None:
        ended = lambda n: any(text in spoken(row, ids[:n]) for text in stops)
        return next(n for n in range(1, len(ids) + 1) if ended(n)) if ended(len(ids)) else None

    return stop


def _allowed(model: Model, tokenizer: Tokenizer, request: Request) -> np.ndarray:
    """bool [V]: the ids that a token of the tokenizer has, without those to be suppressed."""
    named = np.array([bool(piece) for piece in tokenizer.pieces()])[: model.cfg.vocab_size]
    allowed = np.pad(named, (0, model.cfg.vocab_size - len(named)))
    allowed[[i for i in request.suppressed if 0 <= i < len(allowed)]] = False
    if not allowed.any():
        raise ConfigError("suppressed: leaves no id that could be drawn")
    return allowed


def _fill_gaps(model, params, tokenizer, rows, request, objective) -> list[list[dict]]:
    mask, (before, behind) = mask_id(tokenizer), tokenizer.around("encoder")
    samples, allowed = [], _allowed(model, tokenizer, request)
    filled = fill(model, params, rows, mask, top_k=request.top_k or 5, allowed=allowed)
    for row, gaps in zip(rows, filled, strict=True):
        best = iter(gap[0][0] for gap in gaps)
        row = row[len(before) : len(row) - len(behind)]
        tokens = [next(best) if token == mask else token for token in row]
        candidates = [
            [{"token": i, "text": tokenizer.decode([i]), "probability": p} for i, p in gap]
            for gap in gaps
        ]
        filled_in = {"completion": tokenizer.decode(tokens), "tokens": tokens}
        samples.append([filled_in | {"candidates": candidates}])
    return samples


def _with_sentinels(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of ids, in which sentinels show."""
    names = {i: name for name, i in tokenizer.specials.items() if name.startswith(SENTINEL)}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

"""Text in, text out: what `launch.py generate` does for each kind of model."""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import models, objectives
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import MASKS, SENTINEL, Tokenizer
from llm_jax.decode.beam import beam_search
from llm_jax.decode.fill import fill
from llm_jax.decode.request import Request
from llm_jax.decode.sample import generate
from llm_jax.models import Model
from llm_jax.objectives.masked_lm import mask_id

log = logging.getLogger(__name__)


def complete(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    objective: ConfigDict | None = None,
    **settings: Any,
) -> list[dict]:
    """Generates text: for each prompt its samples, {prompt, completion, tokens} each.

    A decoder continues the prompt: prompt + completion is the whole text. An encoder-decoder reads
    it and writes from the tokenizer's bos_id (which is pad where, as in T5, there is no bos). A
    masked model fills [MASK] or <mask>: `completion` and `tokens` are the prompt with each gap's
    best token, and `candidates` has a list for each gap, of the top_k (0: 5) {token, text,
    probability}. Beam search adds `score`.

    Special tokens that a prompt spells are read as such, as transformers reads them (in training
    text they are text). Ids that no token of the tokenizer has are never drawn.

    Args:
      objective: config.objective, by which prompts are laid out as the model has learned them:
        seq2seq's prefix in front, a prefix language model's seen in both directions.
      **settings: fields of Request.

    Raises:
      ConfigError: a model without logits of words, a prompt that it cannot take, or settings that
        do not go together.
    """
    request = Request(**settings)
    kind, head = model.cfg.kind, model.cfg.head
    if not models.heads.speaks(model.cfg):
        raise ConfigError(f"model.head={head!r}: the model has no logits of words; it writes no "
                          "text and fills no gaps, which a head of lm or mlm does")
    request.check(kind)
    if kind != "encoder":
        request = request.resolve(kind, tokenizer.generation)
    write = {"encoder": _fill_gaps, "encoder_decoder": _answer, "decoder": _continue}[kind]
    try:
        samples = write(model, params, tokenizer, prompts, request, objective)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first = ("prompt", "completion", "tokens")
    named = [{"prompt": p} | one for p, some in zip(prompts, samples, strict=True) for one in some]
    return [{name: sample[name] for name in first} | sample for sample in named]


def _continue(model, params, tokenizer, prompts, request, objective) -> list[list[dict]]:
    before, behind = tokenizer.around("decoder")
    rows = [[*before, *tokenizer.read(prompt), *behind] for prompt in prompts]
    rows = [row or [tokenizer.bos_id] for row in rows]  # something must come first
    prefix = bool(objective) and bool(objectives.get(objective.name).prefix)

    def spoken(row: Sequence[int], ids: list[int]) -> str:
        # The blank between the two is in the text of both, but of neither alone.
        whole, start = tokenizer.decode([*row, *ids]), tokenizer.decode(row)
        return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids)

    return _write(model, params, tokenizer, rows, request, spoken, prefix=prefix)


def _answer(model, params, tokenizer, prompts, request, objective) -> list[list[dict]]:
    before, behind = tokenizer.around("encoder_decoder")
    task = objectives.get(objective.name) if objective else None
    texts = [task.prompt(prompt, objective) for prompt in prompts] if task else prompts
    sources = [[*before, *tokenizer.read(text), *behind] for text in texts]
    starts = [[tokenizer.bos_id] for _ in prompts]
    spoken = lambda row, ids: _with_sentinels(tokenizer, ids)
    return _write(model, params, tokenizer, starts, request, spoken, sources)


def _write(
    model, params, tokenizer, rows, request, spoken, sources=None, **inputs
) -> list[list[dict]]:
    """The samples of each row of ids: {tokens, completion}, with a beam's score.

    spoken: (row, ids behind it) -> their text.
    """
    length, longest = model.cfg.max_length, max(map(len, rows))
    room = max(1, length - longest + 1)
    count = request.tokens(longest, room)
    inputs |= {"max_new_tokens": count, "allowed": _allowed(model, tokenizer, request)}
    inputs["eos_id"] = tokenizer.eos_id if request.eos_ids is None else request.eos_ids
    names = ["repetition_penalty"]
    if request.beams > 1:
        names += ["beams", "length_penalty"]
    else:
        names += ["temperature", "top_k", "top_p", "min_p", "seed"]
        inputs["stop"] = _stop(request.stop, spoken)
        if count > room:
            log.warning("max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d "
                        "leaves room for %d; beyond that, the beginning is forgotten",
                        count, longest, length, room)
    inputs |= {name: getattr(request, name) for name in names}
    copies = 1 if request.beams > 1 else request.samples
    draws = [i for i in range(len(rows)) for _ in range(copies)]  # the row of each
    order = sorted(range(len(draws)), key=lambda k: len((sources or rows)[draws[k]]))
    samples = [[] for _ in rows]
    for at in range(0, len(order), request.batch_size):
        numbers = order[at : at + request.batch_size]
        of = [draws[k] for k in numbers]
        if sources:
            inputs["sources"] = [sources[i] for i in of]
        least = [max(request.min_new_tokens, request.min_length - len(rows[i])) for i in of]
        more = inputs | {"min_new_tokens": least}
        if request.beams > 1:
            best = beam_search(model, params, [rows[i] for i in of], **more)
            written = [[h._asdict() for h in beams[: request.samples]] for beams in best]
        else:
            ids = generate(model, params, [rows[i] for i in of], draws=numbers, **more)
            written = [[{"tokens": row}] for row in ids]
        for i, new in zip(of, written, strict=True):
            samples[i] += new
    for row, some in zip(rows, samples, strict=True):
        for sample in some:
            sample["completion"] = _before(request.stop, spoken(row, sample["tokens"]))
    return samples


def _before(stops: Sequence[str], text: str) -> str:
    """The text before the first of the stop strings."""
    return text[: min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


def _stop(stops: Sequence[str], spoken: Callable) -> Callable | None:
    """What `stream` asks for: how many ids there are when a stop string is complete."""
    if not stops:
        return None

    def stop(row: Sequence[int], ids: list[int]) -> int | None:
        there = lambda n: any(text in spoken(row, ids[:n]) for text in stops)
        return next(n for n in range(1, len(ids) + 1) if there(n)) if there(len(ids)) else None

    return stop


def _allowed(model: Model, tokenizer: Tokenizer, request: Request) -> np.ndarray:
    """bool [V]: the ids that a token of the tokenizer has, without those to be suppressed."""
    named = np.array([bool(piece) for piece in tokenizer.pieces()])[: model.cfg.vocab_size]
    allowed = np.pad(named, (0, model.cfg.vocab_size - len(named)))
    allowed[[i for i in request.suppressed if 0 <= i < len(allowed)]] = False
    return allowed


def _fill_gaps(model, params, tokenizer, prompts, request, objective) -> list[list[dict]]:
    mask, (before, behind) = mask_id(tokenizer), tokenizer.around("encoder")
    name = tokenizer.pieces()[mask]
    rows = []
    for prompt in prompts:
        ids = tokenizer.read(re.sub("|".join(map(re.escape, MASKS)), lambda _: name, prompt))
        if mask not in ids:
            raise ConfigError(f"prompt {prompt!r}: put {name} where the model is to fill in")
        rows.append([*before, *ids, *behind])
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
        sample = {"completion": tokenizer.decode(tokens), "tokens": tokens}
        samples.append([sample | {"candidates": candidates}])
    return samples


def _with_sentinels(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of ids, in which sentinels show."""
    names = {i: name for name, i in tokenizer.specials.items() if name.startswith(SENTINEL)}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

"""Text in, text out: what `launch.py generate` does for each kind of model."""

import itertools
import logging
import re
from collections.abc import Iterable, Sequence
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
    """Generates text: for each prompt {prompt, completion, tokens}.

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
    request, kind = Request(**settings), model.cfg.kind
    rows = read(model.cfg, tokenizer, prompts, objective)
    request.check(kind)
    if kind != "encoder":
        request = request.resolve(kind, tokenizer.generation)
    write = {"encoder": _fill_gaps, "encoder_decoder": _answer, "decoder": _continue}[kind]
    try:
        samples = write(model, params, tokenizer, rows, request, objective)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first = ("prompt", "completion", "tokens")
    samples = [{"prompt": p} | sample for p, sample in zip(prompts, samples, strict=True)]
    return [{name: sample[name] for name in first} | sample for sample in samples]


def read(
    cfg: ConfigDict, tokenizer: Tokenizer, prompts: Sequence[str], objective: ConfigDict | None
) -> list[list[int]]:
    """Returns the ids of each prompt as a model of config.model is given them; computes nothing.

    Raises:
      ConfigError: a model without logits of words; a prompt without a gap for a masked model, or
        of more tokens than model.max_length.
    """
    if not models.heads.speaks(cfg):
        raise ConfigError(f"model.head={cfg.head!r}: the model has no logits of words; it writes "
                          "no text and fills no gaps, which a head of lm or mlm does")
    lay_out = lambda text: text
    if cfg.kind == "encoder":
        mask = mask_id(tokenizer)
        name = tokenizer.pieces()[mask]
        lay_out = lambda text: re.sub("|".join(map(re.escape, MASKS)), lambda _: name, text)
    elif cfg.kind == "encoder_decoder" and objective:
        lay_out = lambda text: objectives.get(objective.name).prompt(text, objective)
    before, behind = tokenizer.around(cfg.kind)
    rows = []
    for prompt in prompts:
        row = [*before, *tokenizer.read(lay_out(prompt)), *behind]
        if cfg.kind == "encoder" and mask not in row:
            raise ConfigError(f"prompt {prompt!r}: put {name} where the model is to fill in")
        if len(row) > cfg.max_length:
            raise ConfigError(f"prompt {prompt[:60]!r}: has {len(row)} tokens; at most "
                              f"model.max_length={cfg.max_length}")
        rows.append(row or [tokenizer.bos_id])  # something must come first
    return rows


def _continue(model, params, tokenizer, rows, request, objective) -> list[dict]:
    prefix = bool(objective) and bool(objectives.get(objective.name).prefix)
    samples = _write(model, params, tokenizer, rows, request, prefix=prefix)
    for row, sample in zip(rows, samples, strict=True):
        # The blank between the two is in the text of both, but of neither alone.
        whole, start = tokenizer.decode(row + sample["tokens"]), tokenizer.decode(row)
        alone = tokenizer.decode(sample["tokens"])
        sample["completion"] = whole.removeprefix(start) if whole.startswith(start) else alone
    return samples


def _answer(model, params, tokenizer, rows, request, objective) -> list[dict]:
    starts = [[tokenizer.bos_id] for _ in rows]
    samples = _write(model, params, tokenizer, starts, request, sources=rows)
    for sample in samples:
        sample["completion"] = _with_sentinels(tokenizer, sample["tokens"])
    return samples


def _write(model, params, tokenizer, rows, request, **inputs) -> list[dict]:
    """{tokens}, with a beam's score, for each row of ids."""
    length, longest = model.cfg.max_length, max(map(len, rows))
    room = max(1, length - longest + 1)
    count = request.tokens(longest, room)
    inputs |= {"max_new_tokens": count, "allowed": _allowed(model, tokenizer, request)}
    inputs["eos_id"] = tokenizer.eos_id if request.eos_ids is None else request.eos_ids
    settings = lambda *names: {name: getattr(request, name) for name in names} | inputs
    if request.beams > 1:
        best = beam_search(model, params, rows, **settings("beams", "length_penalty"))
        return [{"tokens": beams[0].tokens, "score": beams[0].score} for beams in best]
    if count > room:
        log.warning("max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d leaves "
                    "room for %d; beyond that, the beginning is forgotten",
                    count, longest, length, room)
    draw = settings("temperature", "top_k", "top_p", "seed")
    return [{"tokens": ids} for ids in generate(model, params, rows, **draw)]


def _allowed(model: Model, tokenizer: Tokenizer, request: Request) -> np.ndarray:
    """bool [V]: the ids that a token of the tokenizer has, without those to be suppressed."""
    named = np.array([bool(piece) for piece in tokenizer.pieces()])[: model.cfg.vocab_size]
    allowed = np.pad(named, (0, model.cfg.vocab_size - len(named)))
    allowed[[i for i in request.suppressed if 0 <= i < len(allowed)]] = False
    return allowed


def _fill_gaps(model, params, tokenizer, rows, request, objective) -> list[dict]:
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
        sample = {"completion": tokenizer.decode(tokens), "tokens": tokens}
        samples.append(sample | {"candidates": candidates})
    return samples


def _with_sentinels(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of ids, in which sentinels show."""
    names = {i: name for name, i in tokenizer.specials.items() if name.startswith(SENTINEL)}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

"""Text in, text out: what `launch.py generate` does for each kind of model."""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from llm_jax import models, objectives
from llm_jax.config import ConfigError
from llm_jax.data import chat
from llm_jax.data.tokenizers import MASKS, SENTINEL, Tokenizer
from llm_jax.decode import sample
from llm_jax.decode.beam import beam_search
from llm_jax.decode.request import Request
from llm_jax.decode.score import fill, log_likelihoods
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
    job = _Job(model, params, tokenizer, prompts, objective, settings)
    samples = job.fill() if model.cfg.kind == "encoder" else job.write()
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
    settings = settings | {"samples": 1}
    job = _Job(model, params, tokenizer, [prompt], objective, settings)
    stops, shown = job.request.stop, 0
    if job.request.beams > 1:
        raise ConfigError(f"beams={job.request.beams}: beam search has no text before its end")
    for (ids,) in sample.stream(model, params, job.rows, **job.inputs(), every=1):
        text = _before(stops, job.spoken(job.rows[0], ids))
        sure = text.rstrip("\ufffd")
        stop_begins = (i for stop in stops for i in range(1, len(stop))
                       if sure.endswith(stop[:i]))  # fmt: skip
        sure = sure[: len(sure) - max(stop_begins, default=0)]
        if len(sure) > shown:
            yield sure[shown:]
            shown = len(sure)
    if len(text) > shown:
        yield text[shown:]


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


class _Job:
    """What is to be continued or filled in, and how.

    Attributes:
      rows: ids, which the decoder goes on from; of a masked model those with the gaps.
      sources: an encoder-decoder's prompts.
    """

    def __init__(self, model, params, tokenizer, prompts, objective, settings):
        self.model, self.params, self.tokenizer, self.sources = model, params, tokenizer, None
        self.rows = read(model.cfg, tokenizer, prompts, objective)
        request, kind = Request(**settings), model.cfg.kind
        request.check(kind)
        self.request = request
        if kind != "encoder":
            self.request = request.resolve(kind, tokenizer.generation)
        if kind == "encoder_decoder":
            self.rows, self.sources = [[tokenizer.bos_id] for _ in self.rows], self.rows
        self.prefix = bool(objective) and objectives.get(objective.name).prefix

    def spoken(self, row: Sequence[int], ids: list[int]) -> str:
        """The text of ids behind a row."""
        tokenizer = self.tokenizer
        if self.sources:
            return _with_sentinels(tokenizer, ids)
        # Decoded apart, the space between prompt and completion would be lost.
        whole, start = tokenizer.decode([*row, *ids]), tokenizer.decode(row)
        return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids)

    def stop(self, row: Sequence[int], ids: list[int]) -> int | None:
        """How many ids there are when a stop string is complete; None where none is."""
        ended = lambda n: any(x in self.spoken(row, ids[:n]) for x in self.request.stop)
        return next(n for n in range(1, len(ids) + 1) if ended(n)) if ended(len(ids)) else None

    def allowed(self) -> np.ndarray:
        """bool [V]: the ids that a token of the tokenizer has, without those to be suppressed."""
        vocabulary = self.model.cfg.vocab_size
        named = np.array([bool(piece) for piece in self.tokenizer.pieces()])[:vocabulary]
        allowed = np.pad(named, (0, vocabulary - len(named)))
        allowed[[i for i in self.request.suppressed if 0 <= i < vocabulary]] = False
        if not allowed.any():
            raise ConfigError("suppressed: leaves no id that could be drawn")
        return allowed

    def inputs(self) -> dict[str, Any]:
        """Arguments of `sample.stream`, or `beam_search`, for all rows."""
        request, length = self.request, self.model.cfg.max_length
        longest = max(map(len, self.rows))
        room = max(1, length - longest + 1)
        count = request.tokens(longest, room)
        names = ["repetition_penalty"]
        if request.beams > 1:
            names += ["beams", "length_penalty"]
        else:
            names += ["temperature", "top_k", "top_p", "min_p", "seed", "memory"]
            if count > room:
                log.warning("max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d "
                            "leaves room for %d; beyond that, the beginning is forgotten",
                            count, longest, length, room)
        inputs = {name: getattr(request, name) for name in names}
        if request.beams == 1:
            inputs["stop"] = self.stop if request.stop else None
        least = [max(request.min_new_tokens, request.min_length - len(row)) for row in self.rows]
        return inputs | {
            "max_new_tokens": count, "allowed": self.allowed(), "sources": self.sources,
            "eos_id": self.tokenizer.eos_id if request.eos_ids is None else request.eos_ids,
            "min_new_tokens": least, "prefix": self.prefix,
        }  # fmt: skip

    def write(self) -> list[list[dict]]:
        """The samples of each prompt: {tokens, completion}, with a beam's score."""
        model, params, request, inputs = self.model, self.params, self.request, self.inputs()
        copies = 1 if request.beams > 1 else request.samples
        of = [i for i in range(len(self.rows)) for _ in range(copies)]  # the prompt of each draw
        lengths = [len(row) for row in self.sources or self.rows]
        order = sorted(range(len(of)), key=lambda k: lengths[of[k]])
        samples = [[] for _ in self.rows]
        for at in range(0, len(order), request.batch_size):
            draws = order[at : at + request.batch_size]
            places = [of[k] for k in draws]
            take = lambda rows: rows and [rows[i] for i in places]  # noqa: B023
            each = {name: take(inputs[name]) for name in ("sources", "min_new_tokens")}
            given, settings = take(self.rows), inputs | each
            if request.beams > 1:
                best = beam_search(model, params, given, **settings)
                written = [[h._asdict() for h in beams[: request.samples]] for beams in best]
            else:
                ids = sample.generate(model, params, given, draws=draws, **settings)
                written = [[{"tokens": row}] for row in ids]
            for i, new in zip(places, written, strict=True):
                samples[i] += new
        for row, some in zip(self.rows, samples, strict=True):
            for one in some:
                one["completion"] = _before(request.stop, self.spoken(row, one["tokens"]))
        if request.scored and request.beams == 1:
            self._score(samples)
        return samples

    def _score(self, samples: list[list[dict]]) -> None:
        """Gives each sample its log-probability."""
        pairs = [(i, one) for i, some in enumerate(samples) for one in some]
        rows = [[*self.rows[i], *one["tokens"]] for i, one in pairs]
        sources = self.sources and [self.sources[i] for i, _ in pairs]
        starts = [len(self.rows[i]) for i, _ in pairs]
        scores = log_likelihoods(self.model, self.params, rows, starts, sources=sources,
                                 prefix=self.prefix)  # fmt: skip
        for (_, one), (score, _) in zip(pairs, scores, strict=True):
            one["score"] = score

    def fill(self) -> list[list[dict]]:
        """The one sample of each prompt of a masked model, with the candidates for its gaps."""
        tokenizer, samples = self.tokenizer, []
        mask, (before, behind) = mask_id(tokenizer), tokenizer.around("encoder")
        top_k = self.request.top_k or 5
        filled = fill(self.model, self.params, self.rows, mask, top_k=top_k, allowed=self.allowed())
        for row, gaps in zip(self.rows, filled, strict=True):
            best = iter(gap[0][0] for gap in gaps)
            row = row[len(before) : len(row) - len(behind)]
            tokens = [next(best) if token == mask else token for token in row]
            candidates = [
                [{"token": i, "text": tokenizer.decode([i]), "probability": p} for i, p in gap]
                for gap in gaps
            ]
            samples.append([{"completion": tokenizer.decode(tokens), "tokens": tokens,
                             "candidates": candidates}])  # fmt: skip
        return samples


def _before(stops: Sequence[str], text: str) -> str:
    """The text before the first of the stop strings."""
    return text[: min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


def _with_sentinels(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of ids, in which sentinels show."""
    names = {i: name for name, i in tokenizer.specials.items() if name.startswith(SENTINEL)}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

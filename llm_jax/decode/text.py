"""Text generation from text prompts, for each kind of model."""

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
from llm_jax.decode import sample, speculative
from llm_jax.decode.beam import beam_search
from llm_jax.decode.request import Request
from llm_jax.decode.score import fill, log_likelihoods
from llm_jax.decode.speculative import Speculation
from llm_jax.models import Model
from llm_jax.objectives.masked_lm import mask_id

log = logging.getLogger(__name__)
Prompt = str | Sequence[dict[str, Any]] | Sequence[int]  # a text, messages, or ids


def complete(
    model: Model, params: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt],
    *, objective: ConfigDict | None = None, **settings: Any,
) -> list[dict]:
    """Generates text: returns for each prompt its samples, {prompt, completion, tokens}.

    A decoder continues the prompt: prompt + completion is the whole text. A prompt may also be ids,
    used unchanged, or messages, [{"role": …, "content": …}], rendered by the tokenizer's chat
    template; the completion is then the assistant's reply. An encoder-decoder reads the prompt and
    starts from the tokenizer's bos_id (pad if, as in T5, there is none). A masked model fills
    [MASK] or <mask>: `completion` and `tokens` are the prompt with the best token for each mask,
    and `candidates` lists the top_k (0: 5) {token, text, probability} per mask. Beam search adds
    `score`; speculative decoding its `rounds`, and how many tokens were `proposed` and `accepted`.

    Special tokens in a prompt are recognised, as in transformers (in training text they are not).
    Ids without a token in the tokenizer are never generated.

    Args:
      objective: config.objective; prompts are formatted as in its training: with seq2seq's prefix,
        as a user message after chat training, or bidirectional for a prefix language model.
      **settings: fields of Request.

    Raises:
      ConfigError: a model without a language modelling head, an unsupported prompt, or
        incompatible settings.
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
    """Streams the completion of `complete` in pieces.

    Holds back text that may be part of a stop string or an incomplete character.
    """
    settings = settings | {"samples": 1}
    job = _Job(model, params, tokenizer, [prompt], objective, settings)
    stops, shown = job.request.stop, 0
    if job.request.beams > 1:
        raise ConfigError(f"beams={job.request.beams}: beam search does not support streaming")
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
    """Returns the ids of each prompt as input of a config.model, without running it.

    Raises:
      ConfigError: a model without a language modelling head; for masked models a prompt without a
        mask; more tokens than model.max_length; messages for models other than decoders.
    """
    if not models.heads.speaks(cfg):
        raise ConfigError(f"model.head={cfg.head!r}: the model cannot generate text or fill masks; "
                          "this needs a head lm or mlm")
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
            raise ConfigError(f"prompt {prompt!r}: only decoders support messages")
        if cfg.kind == "encoder" and mask not in row:
            raise ConfigError(f"prompt {prompt!r}: must contain {name}, to be filled in")
        if len(row) > cfg.max_length:
            raise ConfigError(f"prompt {str(prompt)[:60]!r}: has {len(row)} tokens; at most "
                              f"model.max_length={cfg.max_length}")
        rows.append(row or [tokenizer.bos_id])  # at least one token
    return rows


class _Job:
    """A generation request: prompts as ids, and settings.

    Attributes:
      rows: ids that the decoder continues, or ids with masks for a masked model.
      sources: prompts of an encoder-decoder.
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
        """Returns the text of ids that follow a row."""
        tokenizer = self.tokenizer
        if self.sources:
            return _with_sentinels(tokenizer, ids)
        # Decoding them separately would lose the space between prompt and completion.
        whole, start = tokenizer.decode([*row, *ids]), tokenizer.decode(row)
        return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(ids)

    def stop(self, row: Sequence[int], ids: list[int]) -> int | None:
        """Returns the number of ids up to the end of a stop string; None if there is none."""
        ended = lambda n: any(x in self.spoken(row, ids[:n]) for x in self.request.stop)
        return next(n for n in range(1, len(ids) + 1) if ended(n)) if ended(len(ids)) else None

    def allowed(self) -> np.ndarray:
        """Returns bool [V]: ids with a token in the tokenizer, except suppressed ones."""
        vocabulary = self.model.cfg.vocab_size
        named = np.array([bool(piece) for piece in self.tokenizer.pieces()])[:vocabulary]
        allowed = np.pad(named, (0, vocabulary - len(named)))
        allowed[[i for i in self.request.suppressed if 0 <= i < vocabulary]] = False
        if not allowed.any():
            raise ConfigError("suppressed: leaves no id to generate")
        return allowed

    def inputs(self) -> dict[str, Any]:
        """Returns the arguments of `sample.stream` or `beam_search` for all rows."""
        request, length = self.request, self.model.cfg.max_length
        longest = max(map(len, self.rows))
        room = max(1, length - longest + 1)
        count = request.tokens(longest, room)
        names = ["repetition_penalty"]
        if request.beams > 1:
            names += ["beams", "length_penalty"]
        else:
            names += ["temperature", "top_k", "top_p", "min_p", "seed", "memory"]
            if request.draft:
                if self.prefix:
                    raise ConfigError("draft: speculative decoding does not support prefix "
                                      "language models")
                speculative.check(self.model.cfg, self.tokenizer, request.draft, longest, count)
            elif count > room:
                log.warning("max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d "
                            "leaves room for %d; beyond that, the beginning is dropped",
                            count, longest, length, room)
        inputs = {name: getattr(request, name) for name in names}
        if request.beams == 1:
            inputs["stop"] = self.stop if request.stop else None
            if request.draft:
                inputs["window"] = Speculation(request.draft, request.draft_tokens)
        least = [max(request.min_new_tokens, request.min_length - len(row)) for row in self.rows]
        return inputs | {
            "max_new_tokens": count, "allowed": self.allowed(), "sources": self.sources,
            "eos_id": self.tokenizer.eos_id if request.eos_ids is None else request.eos_ids,
            "min_new_tokens": least, "prefix": self.prefix,
        }  # fmt: skip

    def write(self) -> list[list[dict]]:
        """Returns the samples of each prompt: {tokens, completion}, with a score for beams."""
        model, params, request, inputs = self.model, self.params, self.request, self.inputs()
        copies = 1 if request.beams > 1 else request.samples
        of = [i for i in range(len(self.rows)) for _ in range(copies)]  # the prompt of each sample
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
                if work := inputs.get("window"):
                    counts = work.rounds, work.count * work.rounds, work.accepted
                    for (one,), *of in zip(written, *map(np.ndarray.tolist, counts), strict=True):
                        one |= zip(("rounds", "proposed", "accepted"), of, strict=True)
            for i, new in zip(places, written, strict=True):
                samples[i] += new
        for row, some in zip(self.rows, samples, strict=True):
            for one in some:
                one["completion"] = _before(request.stop, self.spoken(row, one["tokens"]))
        if request.scored and request.beams == 1:
            self._score(samples)
        return samples

    def _score(self, samples: list[list[dict]]) -> None:
        """Adds the log-probability to each sample."""
        pairs = [(i, one) for i, some in enumerate(samples) for one in some]
        rows = [[*self.rows[i], *one["tokens"]] for i, one in pairs]
        sources = self.sources and [self.sources[i] for i, _ in pairs]
        starts = [len(self.rows[i]) for i, _ in pairs]
        scores = log_likelihoods(self.model, self.params, rows, starts, sources=sources,
                                 prefix=self.prefix)  # fmt: skip
        for (_, one), (score, _) in zip(pairs, scores, strict=True):
            one["score"] = score

    def fill(self) -> list[list[dict]]:
        """Returns the sample of each prompt of a masked model, with candidates for its masks."""
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
    """Returns the text before the first stop string."""
    return text[: min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


def _with_sentinels(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Returns the text of ids, with visible sentinels."""
    names = {i: name for name, i in tokenizer.specials.items() if name.startswith(SENTINEL)}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

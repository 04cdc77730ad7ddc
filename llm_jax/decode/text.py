"""Text in, text out: what `launch.py generate` does for each kind of model."""

import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from llm_jax import objectives
from llm_jax.config import ConfigError
from llm_jax.data.tokenizers import MASKS, SENTINEL, Tokenizer
from llm_jax.decode.beam import beam_search
from llm_jax.decode.fill import fill
from llm_jax.decode.sample import generate
from llm_jax.models import Model
from llm_jax.objectives.masked_lm import mask_id

log = logging.getLogger(__name__)

NEW_TOKENS = 64  # written where nothing else is asked for and the model has room for them

def complete(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    objective: ConfigDict | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    beams: int = 1,
    length_penalty: float | None = None,
) -> list[dict]:
    """One {prompt, completion, tokens} a prompt: continued, answered, or its gaps filled in.

    A decoder continues the prompt, at temperature 1 if none is given. An encoder-decoder reads
    it and writes from the tokenizer's bos_id (which is pad where, as in T5, there is no bos);
    greedily, if no temperature is given. A masked model fills [MASK] or <mask>: `completion`
    and `tokens` are the prompt with each gap's best token, and `candidates` has a list for each
    gap, of the top_k (0: 5) {token, text, probability}. Beam search adds `score`.

    Args:
      max_new_tokens: None: 64, or as many as model.max_length leaves room for. More than that
        only sampling and greedy search can write, forgetting the beginning: a warning says so.
      objective: config.objective, by which prompts are laid out as the model has learned them:
        seq2seq's prefix in front, a prefix language model's seen in both directions.

    Raises:
      ConfigError: a prompt that the model cannot take, or settings that do not go together.
    """
    draws = temperature is not None or top_p < 1
    if beams != 1 and (draws or top_k):
        raise ConfigError(
            f"beams={beams}: beam search draws nothing; leave out temperature, top_k and top_p, "
            "or use beams=1"
        )
    if beams == 1 and length_penalty is not None:
        raise ConfigError(f"length_penalty={length_penalty}: only beam search has one; use beams=4")
    try:
        if model.cfg.kind == "encoder":
            if draws or beams != 1:
                raise ConfigError(
                    "temperature, top_p, beams: a masked model only lists what is likeliest; "
                    "top_k says how many"
                )
            return _filled(model, params, tokenizer, prompts, top_k or 5)
        task = objectives.get(objective.name) if objective else None
        where = {"eos_id": tokenizer.eos_id, "prefix": task is not None and task.prefix}
        sentinels = {}
        before, behind = tokenizer.around(model.cfg.kind)
        if model.cfg.kind == "encoder_decoder":
            sentinels = {k: i for k, i in tokenizer.specials.items() if k.startswith(SENTINEL)}
            read = [task.prompt(p, objective) for p in prompts] if task else prompts
            sources = (_encode(tokenizer, text, sentinels) for text in read)
            where["sources"] = [[*before, *source, *behind] for source in sources]
            starts = [[tokenizer.bos_id] for _ in prompts]
        else:
            starts = [[*before, *tokenizer.encode(prompt).tolist()] for prompt in prompts]
            starts = [start or [tokenizer.bos_id] for start in starts]  # something must come first
        length, longest = model.cfg.max_length, max(map(len, starts))
        room = max(1, length - longest + 1)
        if max_new_tokens is None:
            max_new_tokens = min(NEW_TOKENS, room)
        where["max_new_tokens"] = max_new_tokens
        if beams == 1 and max_new_tokens > room:
            log.warning(
                "max_new_tokens=%d: after a prompt of %d tokens, model.max_length=%d leaves room "
                "for %d; beyond that, the beginning is forgotten",
                max_new_tokens, longest, length, room,
            )  # fmt: skip
        if beams != 1:
            alpha = 0.6 if length_penalty is None else length_penalty
            best = beam_search(model, params, starts, beams=beams, length_penalty=alpha, **where)
            found = [hypotheses[0].tokens for hypotheses in best]
            more = [{"score": hypotheses[0].score} for hypotheses in best]
        else:
            if temperature is None:
                temperature = 1.0 if model.cfg.kind == "decoder" else 0.0
            draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
            found = generate(model, params, starts, **draw, **where)
            more = [{}] * len(found)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [
        {"prompt": prompt, "completion": _decode(tokenizer, tokens, sentinels), "tokens": tokens}
        | extra
        for prompt, tokens, extra in zip(prompts, found, more, strict=True)
    ]


def _filled(model, params, tokenizer, prompts, top_k):
    mask, (before, behind) = mask_id(tokenizer), tokenizer.around(model.cfg.kind)
    rows = []
    for prompt in prompts:
        ids = _encode(tokenizer, prompt, dict.fromkeys(MASKS, mask))
        if mask not in ids:
            raise ConfigError(f"prompt {prompt!r}: put {MASKS[0]} where the model is to fill in")
        rows.append([*before, *ids, *behind])
    samples = []
    found = fill(model, params, rows, mask, top_k=top_k)
    for prompt, row, gaps in zip(prompts, rows, found, strict=True):
        best = iter(gap[0][0] for gap in gaps)
        tokens = [next(best) if token == mask else token for token in row[1:-1]]
        candidates = [
            [{"token": i, "text": tokenizer.decode([i]), "probability": p} for i, p in gap]
            for gap in gaps
        ]
        sample = {"prompt": prompt, "completion": tokenizer.decode(tokens), "tokens": tokens}
        samples.append(sample | {"candidates": candidates})
    return samples


def _encode(tokenizer: Tokenizer, text: str, specials: dict[str, int]) -> list[int]:
    """Ids of text, in which these specials, and no others, are read as such."""
    *parts, last = re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]
    ids = []
    for part, special in zip(parts[::2], parts[1::2], strict=True):
        # Elsewhere than in bytes, the blank before a word is in its token, so in the gap.
        part = part if tokenizer.kind in ("bytes", "chars") else part.rstrip(" ")
        ids += [*tokenizer.encode(part).tolist(), specials[special]]
    return ids + tokenizer.encode(last).tolist()


def _decode(tokenizer: Tokenizer, ids: Iterable[int], specials: dict[str, int]) -> str:
    """Text of ids, in which these specials show."""
    names = {i: name for name, i in specials.items()}
    runs = itertools.groupby(ids, key=names.get)
    return " ".join(filter(None, (name or tokenizer.decode(list(run)) for name, run in runs)))

"""Generation settings, with defaults from an imported generation_config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.decode.cache import Memory

NEW_TOKENS = 64  # default of max_new_tokens, limited by model.max_length
FILE = "generation_config.json"
# Unsupported entries that have no effect at these values (None: unset).
NEUTRAL = {
    "typical_p": (1.0,), "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "begin_suppress_tokens": ([],), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": (),
    "penalty_alpha": (0,), "guidance_scale": (1, 1.0), "num_beam_groups": (1,),
    "diversity_penalty": (0,), "sequence_bias": (), "force_words_ids": (), "constraints": (),
    "exponential_decay_length_penalty": (), "max_time": (),
    "watermarking_config": (), "dola_layers": (), "remove_invalid_values": (False,),
    "renormalize_logits": (False,), "prompt_lookup_num_tokens": (0,),
}  # fmt: skip
LISTS = {
    "eos_token_id": (int,), "suppress_tokens": (int,), "stop_strings": (str,),
    "bad_words_ids": (list,),
}  # fmt: skip
TYPES = LISTS | {"do_sample": (bool,)} | dict.fromkeys(
    ("temperature", "top_p", "min_p", "repetition_penalty"), (int, float)
) | dict.fromkeys(
    ("top_k", "num_beams", "num_return_sequences", "max_new_tokens", "min_new_tokens",
     "max_length", "min_length"), (int,)
)  # fmt: skip
LARGE = float(np.finfo(np.float32).max)  # larger values are infinite in float32
COUNT = (lambda x: x >= 1, "at least 1")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": COUNT, "samples": COUNT, "beams": COUNT, "batch_size": COUNT,
    "draft_tokens": (lambda x: 1 <= x <= 32, "in 1 … 32"),
    "min_new_tokens": (lambda x: x >= 0, "at least 0"),
    "top_k": (lambda x: x >= 0, "at least 0"),
    "temperature": (lambda x: 0 <= x <= LARGE, "at least 0, and finite in float32"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "at least 0 and at most 1"),
    "repetition_penalty": (lambda x: 0 < x <= LARGE, "above 0, and finite"),
    "length_penalty": (lambda x: 0 <= x <= LARGE, "at least 0, and finite"),
    "seed": (lambda x: 0 <= x < 2**32, "in 0 … 2^32 - 1"),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """Generation settings; None: from the imported generation_config.json, or the default.

    Attributes:
      max_new_tokens: default 64, limited by model.max_length. Sampling and greedy search can
        generate more, but then drop the beginning of the context, with a warning.
      min_new_tokens: default 0.
      samples: per prompt, default 1: random samples, or the best beams.
      temperature: 0 is greedy. Default 1, for encoder-decoders 0.
      top_k, top_p, min_p: sampling filters, default 0, 1 and 0 (none); for masked models, top_k is
        the number of candidates, default 5.
      repetition_penalty: default 1 (none); see `rules.Rules`.
      stop: stop strings; a completion ends before the first one, and its tokens include the one
        that completes it, as in transformers.
      seed: of sampling, 0 … 2^32 - 1.
      beams: more than 1: beam search.
      length_penalty: of beam search, default 0.6.
      scored: return the log-probability as score, also for greedy and sampled texts.
      batch_size: prompts per batch, sorted by length; does not affect the results.
      eos_ids: end-of-text ids; default: the tokenizer's eos_id.
      suppressed: ids that are never generated.
      max_length, min_length: in tokens of prompt and text together.
      imported: whether to read an imported generation_config.json.
      memory: for sampling a single text: keeps its KV cache for the next call; not with a draft.
      draft: a `Draft` model for speculative decoding: the same distribution, faster.
      draft_tokens: tokens that it proposes in a round, 1 … 32, default 4.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: Sequence[str] | None = None
    seed: int = 0
    beams: int | None = None
    length_penalty: float | None = None
    scored: bool = False
    batch_size: int = 64
    eos_ids: Sequence[int] | None = None
    suppressed: Sequence[int] = ()
    max_length: int | None = None
    min_length: int = 0
    imported: bool = True
    memory: Memory | None = None
    draft: Any = None
    draft_tokens: int | None = None

    def __post_init__(self):
        for name, (allows, allowed) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not allows(value):
                raise ConfigError(f"{name}={value}: must be {allowed}")

    def check(self, kind: str) -> None:
        """Raises ConfigError for incompatible settings, given a model.kind."""
        searches = self.beams not in (None, 1)
        draws = self.temperature is not None or self.top_p not in (None, 1) or self.min_p
        rules = self.repetition_penalty, self.min_new_tokens, self.samples, self.stop
        problem = ""
        if self.draft is not None and (kind != "decoder" or searches):
            problem = (f"draft, model.kind={kind!r}, beams={self.beams or 1}: speculative decoding "
                       "is for decoders, and samples; it does not search")
        elif self.draft_tokens is not None and self.draft is None:
            problem = f"draft_tokens={self.draft_tokens}: only with a draft model; set draft"
        elif kind == "encoder":
            if draws or searches or any(rules):
                problem = ("temperature, top_p, beams …: not supported by masked models, which "
                         "list the top_k candidates")
        elif searches and (draws or self.top_k):
            problem = (f"beams={self.beams}: beam search does not sample; remove temperature, "
                     "top_k, top_p and min_p, or set beams=1")
        elif self.length_penalty is not None and not searches:
            problem = f"length_penalty={self.length_penalty}: only for beam search; set beams=4"
        if problem:
            raise ConfigError(problem)

    def resolve(self, kind: str, stated: Mapping[str, Any] | None) -> "Request":
        """Fills in unset values from `stated`, a generation_config.json, as transformers does
        (greedy unless do_sample, top_k 50 for sampling), then from the defaults.

        Values set here take precedence over the file; setting any of temperature, top_k, top_p and
        min_p overrides all four. Raises ConfigError for unsupported entries of the file that would
        change the text.
        """
        asked = self
        if stated is not None and self.imported:
            asked = replace(self, **self._stated(_read(stated)))
        draws = kind == "decoder" or (asked.top_k or asked.top_p not in (None, 1))
        defaults = {"temperature": 1.0 if draws else 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
                    "beams": 1, "length_penalty": 0.6, "repetition_penalty": 1.0, "samples": 1,
                    "min_new_tokens": 0, "stop": (), "draft_tokens": 4}  # fmt: skip
        asked = replace(asked, **{k: v for k, v in defaults.items() if getattr(asked, k) is None})
        beams, samples = asked.beams, asked.samples
        if beams > 1 and asked.stop:
            raise ConfigError(f"beams={beams}: beam search does not support stop={asked.stop}; "
                              "use beams=1, or stop=()")
        if 1 < beams < samples:
            raise ConfigError(f"samples={samples}: must be at most beams={beams}")
        if samples > 1 and beams == 1 and asked.temperature == 0:
            raise ConfigError(f"samples={samples}: greedy search has only one; set temperature=1, "
                              f"or beams={samples}")
        return asked

    def _stated(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Returns the unset values that a generation_config.json provides."""
        words = [word[0] for word in stated.get("bad_words_ids", ())]
        settings = {"eos_ids": stated.get("eos_token_id", []),
                    "suppressed": [*stated.get("suppress_tokens", ()), *words]}  # fmt: skip
        beams = stated.get("num_beams", 1)
        if self.beams is None and beams != 1:
            raise ConfigError(f"{FILE}: num_beams={beams} uses a different length normalisation; "
                              "set beams=1 for greedy search, or beams=4 for beam search with the "
                              "length penalty of Wu 2016")
        if self.max_new_tokens is None:
            settings |= {k: stated.get(k) for k in ("max_new_tokens", "max_length")}
        if self.min_new_tokens is None:
            settings |= {k: stated.get(k, 0) for k in ("min_new_tokens", "min_length")}
        if self.repetition_penalty is None:
            settings["repetition_penalty"] = stated.get("repetition_penalty", 1.0)
        if self.samples is None:
            settings["samples"] = stated.get("num_return_sequences", 1)
        if self.stop is None:
            settings["stop"] = stated.get("stop_strings", ())
        cuts = self.temperature, self.top_k, self.top_p, self.min_p
        if self.beams in (None, 1) and cuts == (None,) * 4:
            drawn = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
            drawn = drawn if stated.get("do_sample", False) else {}
            settings |= {k: stated.get(k, v) for k, v in drawn.items()} or {"temperature": 0.0}
        return settings

    def tokens(self, prompt: int, room: int) -> int:
        """Returns max_new_tokens for a prompt of `prompt` tokens, with room for `room` more."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            return max(1, self.max_length - prompt)
        return min(NEW_TOKENS, room)


def _read(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the set entries of a generation_config.json, after type checks."""
    stated = {name: value for name, value in entries.items() if value is not None}
    for name, value in stated.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise ConfigError(f"{FILE}: {name}={value!r} is not supported; remove it from "
                              f"tokenizer/{FILE} of the run to decode without it")
        kinds = TYPES.get(name, (type(value),))
        values = value if name in LISTS and isinstance(value, list) else [value]
        if not all(type(x) in kinds for x in values):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{FILE}: {name}={value!r} must be {names}"
                              + ", or a list of it" * (name in LISTS))
        stated[name] = values if name in LISTS else value
    if any(len(word) != 1 for word in stated.get("bad_words_ids", ())):
        raise ConfigError(f"{FILE}: bad_words_ids={stated['bad_words_ids']} of several tokens are "
                          "not supported; remove them from the file to decode without them")
    return stated

"""Chat templates: conversations to text, as transformers renders them, and to scored ids."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.fields import field
from llm_jax.data.tokenizers import Tokenizer

MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
# For tokenizers that have none: Zephyr's, behind the token that begins a text.
DEFAULT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[dict[str, Any]]


def render(tokenizer: Tokenizer, messages: Messages, reply: bool = False) -> str:
    """Returns a conversation as text; reply: with the generation prompt of an assistant's turn.

    Raises:
      ConfigError: no list of {"role", "content"}, or one that the template refuses.
    """
    return _rendered(tokenizer, messages, add_generation_prompt=reply)[0]


def prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """Returns the ids of a conversation with the generation prompt of an assistant's turn."""
    return tokenizer.read(render(tokenizer, messages, reply=True))


def fitted(tokenizer: Tokenizer, messages: Messages, room: int) -> Messages:
    """Returns messages whose prompt has at most `room` ids: without the oldest turns, or all."""
    first = int(messages[0]["role"] == "system")
    while len(messages) > first + 2 and len(prompt(tokenizer, messages)) > room:
        messages = [*messages[:first], *messages[first + 2 :]]
    return messages


def scored(tokenizer: Tokenizer, messages: Messages) -> list[tuple[np.ndarray, bool]]:
    """Returns a conversation's ids in pieces, and which of these are an assistant's replies.

    Replies are what the template puts between {% generation %} and {% endgeneration %}; of one
    without these, what a turn adds to the prompt for it. A reply ends with the token that ends it,
    if it has one: what follows (a line break) is not scored.
    """
    text, spans = _replies(tokenizer, messages)
    cuts = [0, *(at for span in spans for at in span), len(text)]
    ends = np.array(end_ids(tokenizer))
    pieces = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        ids = np.array(tokenizer.read(text[start:stop]), np.int32)
        last = np.flatnonzero(np.isin(ids, ends))
        kept = last[-1] + 1 if number % 2 and len(last) else len(ids)
        pieces += [(ids[:kept], bool(number % 2)), (ids[kept:], False)]
    return pieces


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that end a turn: the tokenizer's, and its generation_config.json's."""
    return [tokenizer.eos_id, *np.ravel((tokenizer.generation or {}).get("eos_token_id") or [])]


def _replies(tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the replies are."""
    if GENERATION.search(_template(tokenizer)):
        return _rendered(tokenizer, messages, return_assistant_tokens_mask=True)
    text, spans = render(tokenizer, messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], reply=True)
            turn = render(tokenizer, messages[: i + 1])
            if not turn.startswith(before):  # it begins otherwise than the template asks it to
                before = render(tokenizer, messages[:i])
            if not (text.startswith(turn) and turn.startswith(before)):
                raise ConfigError("chat template: what it makes of a turn depends on later ones, "
                                  "so that the replies are not known in it; mark them with "
                                  "{% generation %} … {% endgeneration %}")
            spans.append((len(before), len(turn)))
    return text, spans


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template may name; the vocabulary is not listed for them."""
    if tokenizer.roles is not None:
        return tokenizer.roles
    special = {number: name for name, number in tokenizer.specials.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {role: special.get(i) or tokenizer.pieces()[i] for role, i in ids.items()}


def _template(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template or DEFAULT
    if isinstance(template, str):
        return template
    return template.get("default") or next(iter(template.values()))


def _rendered(tokenizer: Tokenizer, messages: Messages, **options: Any) -> tuple[str, list]:
    from transformers.utils.chat_template_utils import render_jinja_template  # takes a second

    options |= {"chat_template": _template(tokenizer)} | _names(tokenizer)
    try:
        messages = field("messages").read(messages)
        texts, spans = render_jinja_template([messages], **options)
    except Exception as error:  # of every kind
        raise ConfigError(f"chat template: cannot render {messages!r} "
                          f"({type(error).__name__}: {error})") from error
    return texts[0], spans[0] if spans else []

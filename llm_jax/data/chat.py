"""Chat templates: render conversations as transformers does, and mark the scored ids."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llm_jax.config import ConfigError
from llm_jax.data.fields import field
from llm_jax.data.tokenizers import Tokenizer

MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
# Default for tokenizers without a template: Zephyr's, after the bos token.
DEFAULT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[dict[str, Any]]


def render(tokenizer: Tokenizer, messages: Messages, reply: bool = False) -> str:
    """Renders a conversation as text; reply: adds the generation prompt of an assistant's turn.

    Raises:
      ConfigError: not a list of {"role", "content"}, or the template rejects it.
    """
    return _rendered(tokenizer, messages, add_generation_prompt=reply)[0]


def prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """Returns the ids of a conversation with the generation prompt of an assistant's turn."""
    return tokenizer.read(render(tokenizer, messages, reply=True))


def fitted(tokenizer: Tokenizer, messages: Messages, room: int) -> Messages:
    """Drops the oldest turns so that the prompt has at most `room` ids, if possible."""
    first = int(messages[0]["role"] == "system")
    while len(messages) > first + 2 and len(prompt(tokenizer, messages)) > room:
        messages = [*messages[:first], *messages[first + 2 :]]
    return messages


def scored(tokenizer: Tokenizer, messages: Messages) -> list[tuple[np.ndarray, bool]]:
    """Returns the ids of a conversation in parts, and whether each is an assistant's reply.

    Replies are the text between {% generation %} and {% endgeneration %} in the template or,
    without these, the text that a turn adds to its generation prompt. A reply ends with its end
    token, if any: text after it (a line break) is not scored.
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
    """Returns the ids that end a turn: those of the tokenizer and of generation_config.json."""
    return [tokenizer.eos_id, *np.ravel((tokenizer.generation or {}).get("eos_token_id") or [])]


def _replies(tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text and the character spans of the replies."""
    if GENERATION.search(_template(tokenizer)):
        return _rendered(tokenizer, messages, return_assistant_tokens_mask=True)
    text, spans = render(tokenizer, messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], reply=True)
            turn = render(tokenizer, messages[: i + 1])
            if not turn.startswith(before):  # does not start with its generation prompt
                before = render(tokenizer, messages[:i])
            if not (text.startswith(turn) and turn.startswith(before)):
                raise ConfigError("chat template: the text of a turn depends on later turns, so "
                                  "that replies cannot be located; mark them with "
                                  "{% generation %} … {% endgeneration %}")
            spans.append((len(before), len(turn)))
    return text, spans


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the special tokens that a template may refer to, by name."""
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
    from transformers.utils.chat_template_utils import render_jinja_template  # slow import

    options |= {"chat_template": _template(tokenizer)} | _names(tokenizer)
    try:
        messages = field("messages").read(messages)
        texts, spans = render_jinja_template([messages], **options)
    except Exception as error:  # any exception of a template
        raise ConfigError(f"chat template: cannot render {messages!r} "
                          f"({type(error).__name__}: {error})") from error
    return texts[0], spans[0] if spans else []

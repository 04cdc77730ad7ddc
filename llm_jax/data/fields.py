"""Document fields: parsing and validation of their values, and their texts.

A record has the columns of a file or dataset; a document has the fields that an objective reads,
from the columns that data.FIELD_column names.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config import ConfigError

Record = dict[str, Any]
Columns = dict[str, str]  # document field: column
Names = dict[str, list[str]]  # column: label names, if the dataset stores label numbers

# ShareGPT's names; other roles are passed to the chat template unchanged.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "system": "system",
         "user": "user", "assistant": "assistant", "tool": "tool"}  # fmt: skip


class Field(NamedTuple):
    """The type of a document field.

    Attributes:
      must: the expected value, in words, for error messages.
      read: column value -> field value; raises for invalid values.
      texts: field value -> its texts, used for tokenizer training and splits.
      sample: an example value.
    """

    must: str
    read: Callable[[Any], Any]
    texts: Callable[[Any], list[str]]
    sample: Any


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join([_expect(part, str) for part in value])
    return _expect(value, str)


def _name(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):  # missing values in tables
        raise ValueError("the value is missing")
    if isinstance(value, (bool, int)):
        return str(int(value))
    return str(_expect(value, str, float))


def _names(value: Any) -> list[str]:
    return [_name(x) for x in (value.split() if isinstance(value, str) else _expect(value, list))]


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


def _answers(value: Any) -> list[dict]:
    value = _parsed(value)
    if isinstance(value, dict) and isinstance(value["text"], list):  # TFDS format: lists of fields
        columns = value["text"], value["answer_start"]
        value = [dict(zip(("text", "answer_start"), row, strict=True))
                 for row in zip(*columns, strict=True)]  # fmt: skip
    parts = value if isinstance(value, list) else [value]
    parts = [{"text": part, "answer_start": -1} if isinstance(part, str) else part
             for part in parts]  # fmt: skip
    return [{"text": _expect(part["text"], str), "answer_start": int(part["answer_start"])}
            for part in parts]  # fmt: skip


def _messages(value: Any) -> list[dict]:
    value, messages = _parsed(value), []
    for i, part in enumerate([value] if isinstance(value, str) else _expect(value, list)):
        if isinstance(part, str):
            part = {"role": ("user", "assistant")[i % 2], "content": part}
        role, text = part.get("role", part.get("from")), part.get("content", part.get("value"))
        if "role" not in part and role not in ROLES:
            raise ValueError(f"from is {role!r}; known are {', '.join(ROLES)}")
        role = ROLES.get(_expect(role, str), role)
        messages.append(part | {"role": role, "content": _expect(text, str)})
    return messages


def _placed(answer: dict, context: str) -> dict:
    """Returns the answer with its occurrence in the context that is nearest to answer_start."""
    start, text = answer["answer_start"], answer["text"]
    if start >= 0 and context.startswith(text, start):
        return answer
    places = (found.start() for found in re.finditer(re.escape(text), context))
    return answer | {"answer_start": min(places, key=lambda i: abs(i - start), default=-1)}


TEXT = Field("text", _text, lambda text: [text], "a")
FIELDS: dict[str, Field] = {
    **dict.fromkeys(("label", "group"), Field("text or a number", lambda x: _name(x).strip(),
                                              lambda name: [], "0")),
    "tokens": Field("a list of texts, or texts separated by whitespace", _names,
                    lambda tokens: [" ".join(tokens)], ["a"]),
    "tags": Field("a list of texts, or texts separated by whitespace", _names,
                  lambda tags: [], ["0"]),
    "predicate": Field("a number: a token's place", lambda value: int(_expect(value, int, str)),
                       lambda place: [], 0),
    "answers": Field('a list of {"text": …, "answer_start": …}, or texts', _answers,
                     lambda answers: [], [{"text": "a", "answer_start": 0}]),
    "messages": Field('a list of {"role": …, "content": …}, or alternating texts', _messages,
                      lambda messages: [message["content"] for message in messages],
                      [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]),
}  # fmt: skip


def field(name: str) -> Field:
    """Returns the type of a field, by default plain text."""
    return FIELDS.get(name, TEXT)


def document(
    record: Record, columns: Columns, where: str = "the data", names: Names | None = None
) -> Record:
    """Returns the document of a record.

    Raises:
      ConfigError: a missing column or invalid value; names the column and location.
    """
    doc = {}
    for name, column in columns.items():
        key, wanted = f"data.{name}_column", field(name)
        try:
            value = _inside(record, column)
        except (KeyError, TypeError):
            raise ConfigError(f"{key}: {column!r} is not in {where}, which has {sorted(record)}; "
                              f"set --config.{key}=NAME to one of these or, for a .csv or .tsv "
                              "without a header, to a number from 0") from None
        if not isinstance(value, str):
            value = _plain(value, (names or {}).get(column))
        try:
            doc[name] = wanted.read(value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            shown = repr(value)
            shown = shown if len(shown) < 80 else f"{shown[:80]}…"
            why = f" ({error})" if type(error) is ValueError else ""
            raise ConfigError(f"{key}: {column!r} of {where} must be {wanted.must}, not "
                              f"{type(value).__name__}: {shown}{why}") from None
    if {"context", "answers"} <= doc.keys():
        placed = [_placed(answer, doc["context"]) for answer in doc["answers"]]
        doc["answers"] = sorted(placed, key=lambda answer: answer["answer_start"] < 0)
    if {"tokens", "tags"} <= doc.keys() and len(doc["tokens"]) != len(doc["tags"]):
        raise ConfigError(f"data.tags_column: {columns['tags']!r} of {where} has "
                          f"{len(doc['tags'])} for {len(doc['tokens'])} tokens")
    place, count = doc.get("predicate", 0), len(doc.get("tokens", ()))
    if {"tokens", "predicate"} <= doc.keys() and not 0 <= place < count:
        raise ConfigError(f"data.predicate_column: {columns['predicate']!r} of {where} is {place}; "
                          f"must be an index, from 0, of its {count} tokens")
    return doc


def _inside(record: Any, column: str) -> Any:
    """Returns the value of a column; "translation.en" is nested."""
    for part in [column] if column in record else column.split("."):
        record = record[part]
    return record


def _plain(value: Any, names: list[str] | None = None) -> Any:
    """Converts a value to JSON types, and label numbers to their names."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part, names) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if names and isinstance(value, int) and 0 <= value < len(names):  # -1: unlabelled test set
        return names[value]
    return value


def texts(doc: Record) -> list[str]:
    """Returns all texts of a document, without labels, tags and answers."""
    parts = [part.text for part in doc.get("parts", ())]
    return parts or [text for name, value in doc.items() for text in field(name).texts(value)]


def full(doc: Record) -> bool:
    """Whether all fields have a value; an empty list of answers is a value."""
    return all(value.strip() if isinstance(value, str) else value != []
               for name, value in doc.items() if name != "answers")  # fmt: skip

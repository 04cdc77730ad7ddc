"""The layer pattern `model.layers`: its syntax, and the division of a stack into scans.

    5 local window=1024, 1 dense            five local layers and a global one, repeated
    3 num_experts=0 mlp_dim=18432, rest     three dense layers, then those of model.*
    rest kda, 1 dense                       the last layer has full attention
    2 kda, rest (3 kda, 1 latent)           two layers, then a repeated pattern

An item is a count (default 1) or `rest`, followed by an optional attention variant and optional
settings key=value, or by a list in parentheses. A list without `rest` is repeated up to the depth.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

Spec = dict[str, str]  # layer key -> its value as text
Item = tuple[int | None, "Spec | list[Item]"]  # (count, or None for `rest`; content)
MOST, LONGEST = 10_000, 64  # maximum number of layers; maximum period of a pattern
_TOKEN = re.compile(r"\w+=\([^()]*\)|[(),]|[^\s(),]+")


def parse(text: str) -> list[Item]:
    """Parses a list of layers; raises ValueError for syntax errors."""
    tokens = _TOKEN.findall(text)
    items = _list(tokens)
    if tokens:
        raise ValueError(f"unmatched {tokens[0]!r}")
    return items


def _list(tokens: list[str]) -> list[Item]:
    items = [_item(tokens)]
    while tokens and tokens[0] == ",":
        tokens.pop(0)
        items.append(_item(tokens))
    if sum(count is None for count, _ in items) > 1:
        raise ValueError("only one item of a list can be the 'rest'")
    return items


def _item(tokens: list[str]) -> Item:
    count, spec, empty = 1, {}, True
    if tokens and (tokens[0] == "rest" or tokens[0].isdecimal()):
        word, empty = tokens.pop(0), False
        count = None if word == "rest" else int(word)
        if count == 0:
            raise ValueError("a count of 0 layers: remove the item")
    if tokens and tokens[0] == "(":
        tokens.pop(0)
        inside = _list(tokens)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError("'(' is not closed")
        return count, inside
    while tokens and tokens[0] not in ("(", ")", ","):
        key, sign, value = tokens.pop(0).partition("=")
        key, value = (key, value) if sign else ("attention", key)
        if key in spec:
            raise ValueError(f"{key} is given twice, {spec[key]} and {value}")
        spec[key], empty = value, False
    if empty or (tokens and tokens[0] == "("):
        raise ValueError(
            "an item must be [count | rest] [attention variant] [key=value …], and not empty"
        )
    return count, spec


def expand(what: "Spec | list[Item]", depth: int | None) -> list[Spec]:
    """Returns the spec of each of `depth` layers; None: of a single repetition of the list.

    Raises:
      ValueError: `rest` is negative, or unbounded.
    """
    if isinstance(what, dict):
        return [what] * (1 if depth is None else depth)
    parts = [None if count is None else _times(count, expand(x, None)) for count, x in what]
    if None not in parts:
        once = sum(parts, [])
        return once if depth is None else (once * depth)[:depth]
    if depth is None:
        raise ValueError("'rest' inside counted parentheses is unbounded")
    left = depth - sum(len(part) for part in parts if part is not None)
    if left < 0:
        raise ValueError(f"{depth - left} layers besides the 'rest', but the depth is {depth}")
    filled = [expand(x, left if count is None else None) * (count or 1) for count, x in what]
    return sum(filled, [])


def _times(count, specs):
    if count * len(specs) > MOST:
        raise ValueError(f"{count * len(specs)} layers; at most {MOST}")
    return specs * count


def write(specs: Sequence[str]) -> str:
    """Returns the shortest list, as text, that gives the layers these specs."""
    n = len(specs)
    period = next(p for p in range(1, n + 1) if (specs[:p] * n)[:n] == specs)
    runs = [(len(list(run)), spec) for spec, run in itertools.groupby(specs[:period])]
    return ", ".join(f"{count} {spec}" for count, spec in runs)


class Scan(NamedTuple):
    """Layers compiled as one scan: `period` blocks, repeated `count` times from layer `start`."""

    name: str
    start: int
    period: int
    count: int

    def blocks(self) -> list[str]:
        """Returns the names of the blocks of a period."""
        return ["block"] if self.period == 1 else [f"block_{i}" for i in range(self.period)]

    def names(self) -> list[str]:
        """The names of the repetitions, where the parameters of each are by themselves."""
        return [f"{self.name}_{i}" for i in range(self.count)]


def scans(layers: Sequence[Any]) -> list[Scan]:
    """Divides the layers of a stack, compared by ==, into scans of repeated patterns.

    Greedy from the first layer: each scan takes the pattern whose repetitions cover the most
    layers, the shorter one on ties. Consecutive layers without a repetition form one scan.
    """
    found, n, start, alone = [], len(layers), 0, False
    layers = list(layers)
    while start < n:
        period, count = 1, 1
        for p in range(1, min(LONGEST, (n - start) // 2) + 1):
            pattern, r = layers[start : start + p], 1
            while layers[start + r * p : start + (r + 1) * p] == pattern:
                r += 1
            if r > 1 and r * p > period * count:
                period, count = p, r
            if period * count == n - start:
                break
        if count == 1 and alone:
            found[-1] = found[-1][0], found[-1][1] + 1, 1
        else:
            found.append((start, period, count))
        alone = count == 1
        start += period * count
    name = (lambda i: "layers") if len(found) == 1 else (lambda i: f"layers_{i}")
    return [Scan(name(i), *part) for i, part in enumerate(found)]


_PLACE = re.compile(r"(?:(encoder|decoder)/)?stack/(layers(?:_\d+)?)/(block(?:_\d+)?)(?:/|$)")


def place(path: str) -> tuple[str | None, str, str] | None:
    """Returns ("decoder", "layers_1", "block_0") for a path inside a stack; None outside."""
    match = _PLACE.search(path)
    return match and match.groups()

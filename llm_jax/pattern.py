"""`model.layers`: what each layer of a stack is, in words, and the scans that layers fall into.

    5 local window=1024, 1 dense            five local layers to one global, as often as it takes
    3 num_experts=0 mlp_dim=18432, rest     the first three dense, the others as model.* says
    rest kda, 1 dense                       the last one full attention
    2 kda, rest (3 kda, 1 latent)           a pattern behind a beginning

An item is a count (1 where it is left out) or `rest`, then a kind of attention, settings, both or
neither; or a list in parentheses. A list without `rest` is repeated, and cut, to the depth.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

Spec = dict[str, str]  # key of a layer -> its value as text
Item = tuple[int | None, "Spec | list[Item]"]  # how often, None: the rest; and what
MOST, LONGEST = 10_000, 64  # layers; blocks of a pattern that is looked for
_TOKEN = re.compile(r"\w+=\([^()]*\)|[(),]|[^\s(),]+")


def parse(text: str) -> list[Item]:
    """Returns the items of a list; ValueError says what is wrong with it."""
    tokens = _TOKEN.findall(text)
    items = _list(tokens)
    if tokens:
        raise ValueError(f"{tokens[0]!r} closes nothing")
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
            raise ValueError("0 layers are none: leave them out")
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
            raise ValueError(f"{key} is said twice, {spec[key]} and {value}")
        spec[key], empty = value, False
    if empty or (tokens and tokens[0] == "("):
        raise ValueError("an item is a count or 'rest', a kind of attention, settings key=value")
    return count, spec


def expand(what: "Spec | list[Item]", depth: int | None) -> list[Spec]:
    """Returns a spec for each of so many layers; None: of as many as are written.

    Raises:
      ValueError: a rest that would be negative, or has no end.
    """
    if isinstance(what, dict):
        return [what] * (1 if depth is None else depth)
    parts = [None if count is None else _times(count, expand(x, None)) for count, x in what]
    if None not in parts:
        once = sum(parts, [])
        return once if depth is None else (once * depth)[:depth]
    if depth is None:
        raise ValueError("a 'rest' within parentheses that are counted has no end")
    left = depth - sum(len(part) for part in parts if part is not None)
    if left < 0:
        raise ValueError(f"{depth - left} layers beside the 'rest', but {depth} in all")
    filled = [expand(x, left if count is None else None) * (count or 1) for count, x in what]
    return sum(filled, [])


def _times(count, specs):
    if count * len(specs) > MOST:
        raise ValueError(f"{count * len(specs)} layers; at most {MOST}")
    return specs * count


def write(specs: Sequence[str]) -> str:
    """Returns the text of a list that gives each layer its spec, in words."""
    n = len(specs)
    period = next(p for p in range(1, n + 1) if (specs[:p] * n)[:n] == specs)
    runs = [(len(list(run)), spec) for spec, run in itertools.groupby(specs[:period])]
    return ", ".join(f"{count} {spec}" for count, spec in runs)


class Scan(NamedTuple):
    """Layers that are one scan: `period` blocks, `count` times, from layer `start` on."""

    name: str
    start: int
    period: int
    count: int

    def blocks(self) -> list[str]:
        """The names of the blocks of a period."""
        return ["block"] if self.period == 1 else [f"block_{i}" for i in range(self.period)]


def scans(layers: Sequence[Any]) -> list[Scan]:
    """Cuts a stack's layers where the pattern that repeats, by ==, changes.

    From each layer on, the pattern whose repetitions reach furthest, the shorter of two; layers
    that begin no repetition are one scan.
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
    """("decoder", "layers_1", "block_0") of the path of what lies in a stack; None: in none."""
    match = _PLACE.search(path)
    return match and match.groups()

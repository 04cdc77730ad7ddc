"""Memory and network traffic of a compiled program, from its HLO text and loop trip counts."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
)  # fmt: skip
BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
# Opcodes that do not move bytes.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "broadcast",
    "optimization-barrier", "async-start",
)  # fmt: skip
SLICES, UPDATE = ("dynamic-slice", "gather", "slice"), "dynamic-update-slice"
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+(?:#\d+)?)")


class Instruction(NamedTuple):
    """An HLO instruction: name, shape as text, opcode, names of operands, attributes as text.

    The operand `fusion.1#2` is element 2 of the tuple `fusion.1`.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, key: str) -> str | None:
        """Returns the computation named by `calls=`, `body=`, …."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match and match.group(1)


def size(shape: str, hbm_only: bool = False) -> int:
    """Returns the bytes of an HLO shape, the total for tuples, without padding."""
    total = 0
    for kind, dims, layout in _SHAPE.findall(shape):
        if kind == "token" or (hbm_only and "S(" in layout and "S(0)" not in layout):
            continue
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind) or int(digits.group() if digits else 8)
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total


def dimensions(shape: str) -> list[int]:
    """Returns the dimensions of an array, or of the first array of a tuple."""
    return [int(d) for d in _SHAPE.search(shape).group(2).split(",") if d]


def shape_of(inside: dict[str, Instruction], operand: str) -> str:
    """Returns the shape of an operand as text; "" if it is not in this computation."""
    name, _, index = operand.partition("#")
    shape = inside[name].shape if name in inside else ""
    return _elements(shape)[int(index)] if index and shape else shape


class Program:
    """The computations of a compiled module, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head and not line.startswith("HloModule"):
                current = self.computations.setdefault(head.group(2), {})
                self.entry = head.group(2) if head.group(1) else self.entry
            elif current is not None and " = " in line:
                instruction = _instruction(line)
                current[instruction.name] = instruction
            elif current and line.startswith("}}"):  # continues an instruction with line breaks
                last = current.popitem()[1]
                current[last.name] = last._replace(attributes=last.attributes + line)

    def walk(self) -> Iterator[tuple[dict[str, Instruction], Instruction, float, bool]]:
        """Yields (computation, instruction, number of executions, whether inside a fusion)."""
        yield from self._walk(self.entry, 1.0, False)

    def _walk(self, name, times, fused):
        inside = self.computations.get(name, {})
        for line in inside.values():
            yield inside, line, times, fused
            if line.op == "while":
                turns = self.turns(line) or 1
                yield from self._walk(line.called("body"), times * turns, fused)
            elif line.op == "conditional":
                for branch in _branches(line):
                    yield from self._walk(branch, times, fused)
            elif line.op in ("fusion", "call", "async-start"):
                callee = line.called("calls") or line.called("to_apply")
                yield from self._walk(callee, times, fused or line.op == "fusion")

    def turns(self, loop: Instruction) -> int | None:
        """Returns the trip count of a loop that counts from 0; None if it depends on data."""
        known = re.search(r'known_trip_count[^\d]*(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations.get(loop.called("condition"), {})
        values = [x.attributes for x in condition.values() if x.op == "constant"]
        limit = re.match(r"\d+", values[0]) if len(values) == 1 else None
        return int(limit.group()) if limit else None

    def moved(self, slice_of: Sequence[int]) -> dict[str, Any]:
        """Returns the bytes that a device moves per step; unknown trip counts count as one.

        Returns ici_bytes and dcn_bytes by kind of collective, hbm_traffic_bytes and the number of
        unknown_loops.

        Args:
          slice_of: the slice index of each partition.
        """
        ici, dcn, hbm, unknown = Counter(), Counter(), 0.0, 0
        for inside, line, times, fused in self.walk():
            unknown += line.op == "while" and self.turns(line) is None
            kind = line.op.removesuffix("-start")
            if kind in COLLECTIVES:
                given = sum(size(shape_of(inside, name)) for name in line.operands)
                near, far = _sent(kind, given, line.attributes, slice_of)
                ici[kind] += times * near
                dcn[kind] += times * far
            between = re.search(r'megascale_transfer_type="(\w+)"', line.attributes)
            if line.op == "send" and between:  # XLA's form of a collective between slices
                kind = between.group(1).lower().replace("_", "-")
                given = size(shape_of(inside, line.operands[0]))
                dcn[kind] += times * _ring(kind, given, len(set(slice_of)))
            if not fused:
                hbm += times * self._traffic(inside, line)
        dcn = {kind: sent for kind, sent in dcn.items() if sent}
        return {"ici_bytes": dict(ici), "dcn_bytes": dcn, "hbm_traffic_bytes": hbm,
                "unknown_loops": unknown}  # fmt: skip

    def largest(self, count: int) -> list[dict[str, Any]]:
        """Returns the largest results in HBM, one per shape: {bytes, shape, made_by}."""
        by_shape = {}
        for _, line, _, fused in self.walk():
            if fused or line.op in FREE or line.shape.startswith("("):
                continue
            shape = re.sub(r"\{.*", "", line.shape)
            op_name = re.search(r'op_name="([^"]*)"', line.attributes)
            made_by = op_name.group(1) if op_name else line.op
            buffer = {"bytes": size(line.shape, hbm_only=True), "shape": shape, "made_by": made_by}
            by_shape.setdefault(shape, buffer)
        return sorted(by_shape.values(), key=lambda b: b["bytes"], reverse=True)[:count]

    def _traffic(self, inside, line) -> float:
        """Returns the HBM bytes read and written by an instruction outside of fusions."""
        op = line.op
        if op in FREE or op.endswith(("-done", "-update")):
            return 0
        shape = lambda name: size(shape_of(inside, name), hbm_only=True)
        if op == UPDATE:
            return 2 * shape(line.operands[1])
        if op in SLICES:
            return 2 * size(line.shape, hbm_only=True)
        written = size(line.shape, hbm_only=True)
        if op.endswith("-start") and line.shape.startswith("("):  # (operands, results, …)
            return written
        taken = [min(shape(x), self._read(line, i)) for i, x in enumerate(line.operands)]
        if op == "fusion":
            written = min(written, self._written(line))
        return sum(taken) + written

    def _read(self, user, place: int) -> float:
        """Returns the bytes read from an operand: only the slices if it is only sliced."""
        if user.op in SLICES and place == 0:
            return size(user.shape)
        if user.op == UPDATE and place == 0:
            return 0
        if user.op not in ("fusion", "call"):
            return math.inf
        body = self.computations.get(user.called("calls") or user.called("to_apply"), {})
        given = [x for x in body.values() if x.op == "parameter" and x.attributes == str(place)]
        return sum(self._read_inside(body, x.name) for x in given)

    def _read_inside(self, body, name: str) -> float:
        if body[name].root:
            return math.inf
        users = ((x, i) for x in body.values() for i, y in enumerate(x.operands) if y == name)
        return sum(
            self._read_inside(body, x.name) if x.op == "bitcast" else self._read(x, i)
            for x, i in users
        )

    def _written(self, fusion) -> float:
        """Returns the bytes written by a fusion: only the updates if it updates in place."""
        body = self.computations.get(fusion.called("calls"), {})
        root = next((x for x in body.values() if x.root), None)
        if root is None:
            return math.inf
        parts = [body[name] for name in root.operands] if root.op == "tuple" else [root]

        def one(line):
            while line.op == "bitcast" and line.operands[0] in body:
                line = body[line.operands[0]]
            if line.op == "fusion":
                return min(self._written(line), size(line.shape, hbm_only=True))
            shape = shape_of(body, line.operands[1]) if line.op == UPDATE else line.shape
            return size(shape, hbm_only=True)

        return sum(one(line) for line in parts)


def _instruction(line: str) -> Instruction:
    name, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    shape, right = right[:end], right[end:].strip()
    op, _, right = right.partition("(")
    end = _closing("(" + right, 0) - 1
    inside, attributes = right[: end - 1], right[end:]
    # The parentheses of a constant hold its value.
    attributes = inside if op in ("constant", "parameter") else attributes
    operands = tuple(_NAME.findall(inside))
    root, name = name.startswith("ROOT "), name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, op, operands, attributes, root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i + 1
    return len(text)


def _elements(tuple_shape: str) -> list[str]:
    """Returns the shapes of a tuple's elements."""
    parts, depth = [""], 0
    for letter in tuple_shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _branches(line: Instruction) -> list[str]:
    branches = re.search(r"branch_computations=\{([^}]*)\}", line.attributes)
    if branches:
        return _NAME.findall(branches.group(1))
    return [line.called("true_computation"), line.called("false_computation")]


def _sent(kind: str, given: int, attributes: str, slice_of: Sequence[int]) -> tuple[float, float]:
    """Returns the bytes (over ICI, over DCN) that a device sends for an operand of `given` bytes.

    Over DCN, only the data that remain after the collective within each slice.
    """
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", attributes)
        far = any(slice_of[int(a)] != slice_of[int(b)] for a, b in pairs)
        return (0.0, given) if far else (given, 0.0)
    group = groups(attributes, len(slice_of))[0]
    n, s = len(group), len({slice_of[i] for i in group})
    k = n // s  # devices in the same slice
    if kind == "all-gather":
        return s * _ring(kind, given, k), _ring(kind, given, s)
    if kind == "all-to-all":
        return given * (k - 1) / n, given * (n - k) / n
    return _ring(kind, given, k), _ring(kind, given / k, s)


def _ring(kind: str, given: float, n: int) -> float:
    """Returns the bytes sent by each of n devices in a ring.

    An all-gather sends its operand n - 1 times, a reduce-scatter or all-to-all (n - 1) / n of it,
    an all-reduce twice that, a collective-permute once.
    """
    part = (n - 1) / n
    parts = {"all-gather": n - 1, "all-reduce": 2 * part}
    parts |= {"reduce-scatter": part, "all-to-all": part}
    return given * parts.get(kind, 1)


def groups(attributes: str, count: int) -> np.ndarray:
    """Returns [groups, devices per group] from any of XLA's formats of replica_groups."""
    order = r"(?:, device_ids=\(([^{]*)\))?"
    mesh = re.search(rf"replica_groups=\[?mesh\[([^\]]*)\]{order}[^{{]*\{{([^}}]*)\}}", attributes)
    if mesh:
        # For an axis 'b' of size 8, 'b':(2)2 is the middle factor of 2 x 2 x 2.
        parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh.group(3))
        over, sizes, places = {part[0]: part for part in parts}, [], []
        for name, n in re.findall(r"'?(\w+)'?=(\d+)", mesh.group(1)):
            _, before, size = over.get(name, ("", "", ""))
            before, size = int(before or 1), int(size or n)
            sizes += [before, size, int(n) // before // size]
            places += [len(sizes) - 2] if name in over else []
        if math.prod(sizes) == count:
            array = _numbered(mesh.group(2) or f"[{count}]").reshape(sizes)
            array = np.moveaxis(array, places, range(-len(places), 0))
            return array.reshape(-1, math.prod(sizes[place] for place in places))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return _numbered(iota.group(3)).reshape(int(iota.group(1)), int(iota.group(2)))
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
    if listed:
        members = re.findall(r"\{([\d, ]+)\}", listed.group(1))
        return np.array([[int(x) for x in group.split(",")] for group in members])
    return np.arange(count)[None]


def _numbered(text: str) -> np.ndarray:
    """Returns the device order of `[2,4]T(1,0)`, a transposed iota of that shape, or `0,2,1,3`."""
    sizes, order = re.fullmatch(r"(?:\[([\d,]+)\])?(?:T?\(?([\d,]+)\)?)?", text).groups()
    numbers = lambda text: [int(x) for x in text.split(",")]
    if sizes is None:
        return np.array(numbers(order))
    array = np.arange(math.prod(numbers(sizes))).reshape(numbers(sizes))
    return (array.transpose(numbers(order)) if order else array).reshape(-1)

"""FLOPs of a compiled program: matrix products and attention kernels, from its HLO text."""

import math
import re

import numpy as np

from llm_jax.pod.hlo import Program, dimensions, shape_of

# Products of an attention kernel over the (key, value) dimension: scores, which each backward pass
# recomputes, output, and the gradients of weights, values, queries and keys.
KERNELS = {
    r"splash_m[hq]a_fwd": (1, 1),
    r"splash_m[hq]a_dq": (2, 1),
    r"splash_m[hq]a_dkv": (2, 2),
    r"cudnn\$fmha\w*Softmax\b": (1, 1),
    r"cudnn\$fmha\w*SoftmaxBackward": (3, 2),
}


def computed(program: Program) -> float:
    """Returns the FLOPs per device and step; 8-bit products count half, as they run twice as fast.

    A lower bound: excludes elementwise operations, and counts loops of unknown trip count once.
    """
    return sum(times * _flops(inside, line) for inside, line, times, _ in program.walk())


def _flops(inside, line) -> float:
    if line.op == "custom-call":
        return _ragged(inside, line) if "ragged-dot-none" in line.name else _attention(inside, line)
    if line.op not in ("dot", "convolution"):
        return 0.0
    left, right = (shape_of(inside, name) for name in line.operands)
    out = dimensions(line.shape)
    if line.op == "dot":
        over = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        count = math.prod(out) * math.prod(dimensions(left)[i] for i in over)
    else:
        count = _convolution(dimensions(left), dimensions(right), out, line.attributes)
    narrow = re.match(r"[su]8|f8", left) and re.match(r"[su]8|f8", right)
    return (1.0 if narrow else 2.0) * count


def _convolution(left, right, out, attributes) -> float:
    """Multiplications of a convolution, which also represents products in XLA, without padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    at = [dict(zip(label, sizes, strict=True)) for label, sizes in
          zip(labels, (left, right, out), strict=True)]  # fmt: skip
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _group(r"window=\{([^}]*)\}", attributes)))
    count = at[2]["b"] * at[2]["f"] * at[1]["i"]
    for axis in sorted(set(labels[0]) - {"b", "f"}):
        along = {key: values.split("x")[int(axis)] for key, values in window.items()}
        count *= _taps(along, *(sizes[axis] for sizes in at))
    return count


def _taps(window: dict[str, str], size: int, taps: int, places: int) -> int:
    """Number of (position, tap) pairs inside the input along an axis of a convolution."""
    stride, spread, holes = (
        int(window.get(key, 1)) for key in ("stride", "rhs_dilate", "lhs_dilate")
    )
    start = int(window.get("pad", "0_0").split("_")[0])
    read = np.arange(places)[:, None] * stride + np.arange(taps) * spread - start
    return int(((read >= 0) & (read % holes == 0) & (read < size * holes)).sum())


def _ragged(inside, line) -> float:
    """FLOPs of a grouped matrix product (ragged_dot), on average over devices."""
    left, out = dimensions(shape_of(inside, line.operands[-2])), dimensions(line.shape)
    # [rows, in] times [groups, in, out]; in the gradient, times [rows, out].
    count = left[0] * (left[1] * out[1] if len(out) == 2 else out[1] * out[2])
    return 2.0 * count * (_share(line.attributes) or 0)


def _share(attributes: str) -> float | None:
    """Returns the effective fraction of a kernel's rows or blocks, encoded in its scope name."""
    share = re.search(r"share_(\d+)_of_(\d+)", attributes)
    return share and int(share.group(1)) / int(share.group(2))


def _attention(inside, line) -> float:
    """FLOPs of an attention kernel, for the pairs or blocks that its mask does not skip."""
    about = f"{line.name} {line.attributes}"
    products = next((n for kernel, n in KERNELS.items() if re.search(kernel, about)), None)
    if products is None:
        return 0.0
    shapes = [shape_of(inside, name) for name in line.operands]
    query, key, value = [dimensions(s) for s in shapes if re.match(r"bf16|f32|f16", s)][:3]
    axis = 1 if "cudnn" in about else -2  # positions: heads come after or before them
    T, S = query[axis], key[axis]
    window = int(_group(r'sliding_window_length": (\d+)', about) or 0) or S
    seen = _share(about) or float("NO_MASK" in about)
    if '"CAUSAL"' in about:
        seen = (window * T - window * (window - 1) / 2) / (T * S)
    each = products[0] * key[-1] + products[1] * value[-1]
    return 2.0 * math.prod(query[:-1]) * S * seen * each


def _group(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(x) for x in _group(pattern, text).split(",") if x]

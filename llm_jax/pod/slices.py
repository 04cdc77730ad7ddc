"""Google Cloud's TPU slices: available shapes, hosts and names.

Does not import JAX, which is not needed to write a job file.
"""

import math
from typing import NamedTuple

from llm_jax.config import ConfigError


class Tpu(NamedTuple):
    """A TPU generation: GKE's label, type and runtime of TPU VMs (empty: none), sizes.

    Attributes:
      cubes: number of 4x4x4 cubes in the largest slice; 0: slices are two-dimensional.
      alone: whether a host may have a single chip, in three-dimensional slices.
    """

    label: str
    prefix: str
    runtime: str
    cubes: int = 0
    alone: bool = False


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; hosts as in Google's xpk 1.16.0, without its
# further shapes of v4 and v5p (unsorted, or larger than can be scheduled).
TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 64),
    "v5p": Tpu("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 96),
    "tpu7x": Tpu("tpu7x", "tpu7x", "", 144, True),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v6e": Tpu("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # parts of a cube


class Slice(NamedTuple):
    """A slice: its generation, shape as 4x4x4, hosts, and chips per host."""

    tpu: Tpu
    shape: str
    hosts: int
    chips: int


def find(topology: str) -> Slice:
    """Returns the slice of a topology such as v5p:4x4x4.

    Raises:
      ConfigError: an unknown generation or shape; lists the known ones.
    """
    kind, _, shape = topology.partition(":")
    if kind not in TPUS:
        raise ConfigError(f"--topology={topology}: must be like v5p:4x4x4 (64 chips) or v6e:8x8; "
                          f"known are {', '.join(TPUS)}")
    tpu, sides = TPUS[kind], tuple(int(n) for n in shape.split("x") if n.isdecimal())
    if "x".join(map(str, sides)) != shape or not _exists(tpu, sides):
        shapes = [(1, 1, 1)] * tpu.alone + [*(SMALL if tpu.cubes else FLAT)]
        known = ", ".join("x".join(map(str, sides)) for sides in shapes)
        if tpu.cubes:
            known += (", and AxBxC with A <= B <= C, multiples of 4, with at most "
                      f"{64 * tpu.cubes:,} chips")  # fmt: skip
        raise ConfigError(f"--topology={topology}: {kind} has slices of {known}")
    count = math.prod(sides)
    chips = 4 if count > 1 else 1
    return Slice(tpu, shape, count // chips, chips)


def _exists(tpu: Tpu, sides: tuple[int, ...]) -> bool:
    if not tpu.cubes:
        return sides in FLAT
    whole = len(sides) == 3 and all(n and n % 4 == 0 for n in sides)
    cubes = whole and list(sides) == sorted(sides) and math.prod(sides) <= 64 * tpu.cubes
    return sides in SMALL or cubes or (tpu.alone and sides == (1, 1, 1))

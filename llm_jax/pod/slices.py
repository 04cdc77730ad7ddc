"""Slices of TPUs as Google has them: shapes that exist, hosts, and the names that go with them.

Without JAX, which is not needed to write a job's file.
"""

import math
from typing import NamedTuple

from llm_jax.config import ConfigError


class Tpu(NamedTuple):
    """A generation: GKE's label, a TPU VM's type and runtime (none: has no TPU VMs), its size.

    Attributes:
      cubes: of 4x4x4 chips in the largest slice; 0: slices are flat.
      alone: whether a host may have a single chip, where slices are not flat.
    """

    label: str
    prefix: str
    runtime: str
    cubes: int = 0
    alone: bool = False


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; hosts as in Google's xpk 1.16.0. Shapes of v4
# and v5p that xpk lists beside those (unsorted, or larger than what can be scheduled) are left out.
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
    """A slice: its generation, shape as 4x4x4, hosts, and chips of each host."""

    tpu: Tpu
    shape: str
    hosts: int
    chips: int


def find(topology: str) -> Slice:
    """Returns the slice that a topology such as v5p:4x4x4 names.

    Raises:
      ConfigError: there is none of that generation or shape; names those that there are.
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
            known += (", and AxBxC of A <= B <= C, all multiples of 4, with at most "
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

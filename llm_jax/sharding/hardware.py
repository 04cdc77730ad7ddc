"""Peak rates of accelerators, from vendor data sheets."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Peak rates of a JAX device.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      hbm: HBM capacity in bytes; 0: unknown, as are then the rates below.
      hbm_rate: HBM bandwidth in bytes/s.
      ici_rate: bytes/s sent over all interconnect links, one way (GPU: NVLink).
      dcn_rate: data center network bandwidth in bytes/s.
    """

    flops: float
    hbm: float = 0
    hbm_rate: float = 0
    ici_rate: float = 0
    dcn_rate: float = 0


# Keys are substrings of the device kind; the first match counts. TPUs: Google Cloud's pages
# (docs.cloud.google.com/tpu/docs/v5e …), "System architecture": HBM capacity (GiB) and bandwidth,
# half the bidirectional ICI bandwidth, DCN bandwidth (if missing, the host's network card divided
# by its chips). GPUs: NVIDIA's data sheets. Unverified: v4's ICI and DCN, v6e's DCN, tpu7x's rates,
# the rows of GPUs. A tpu7x device is half a chip.
GiB = 2**30
CHIPS = {
    "v6e": Chip(918e12, 32 * GiB, 1638e9, 400e9, 12.5e9),
    "v5e": Chip(197e12, 16 * GiB, 819e9, 200e9, 3.125e9),
    "tpu7x": Chip(1153.5e12, 96 * GiB, 3690e9, 300e9, 6.25e9),
    "v5": Chip(459e12, 95 * GiB, 2765e9, 600e9, 6.25e9),
    "v4": Chip(275e12, 32 * GiB, 1200e9, 300e9, 6.25e9),
    "gb200": Chip(2500e12, 186e9, 8000e9, 900e9, 50e9),
    "b200": Chip(2250e12, 180e9, 8000e9, 900e9, 50e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9),
    "a100-sxm4-80gb": Chip(312e12, 80e9, 2039e9, 300e9, 25e9),
    "a100": Chip(312e12),
}


def chip(device: jax.Device) -> Chip | None:
    """Returns the rates of a device; None if unknown (a CPU)."""
    kind = device.device_kind.lower().replace(" lite", "e")  # 'tpu v5e' for 'TPU v5 lite'
    return next((chip for name, chip in CHIPS.items() if name in kind), None)

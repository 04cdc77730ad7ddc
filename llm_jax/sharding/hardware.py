"""Peak rates of accelerators, from their makers' data sheets."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Rates of a device, as JAX counts them.

    Attributes:
      flops: a second, dense bfloat16.
      hbm: bytes of HBM; 0: not known here, and no rate below it.
      hbm_rate: bytes a second.
      ici_rate: bytes a second, sent over all links together, one way (GPU: NVLink).
      dcn_rate: bytes a second.
    """

    flops: float
    hbm: float = 0
    hbm_rate: float = 0
    ici_rate: float = 0
    dcn_rate: float = 0


# By part of the device's kind, first match counts: Google Cloud's pages of each TPU
# (docs.cloud.google.com/tpu/docs/v5e …), "System architecture": HBM capacity (GiB) and bandwidth;
# half the bidirectional ICI bandwidth; DCN bandwidth (where the page has none, the host's network
# card shared by its chips); NVIDIA's data sheets. Unverified, as no page at hand has them: v4's ICI
# and DCN, v6e's DCN, tpu7x's rates, the GPUs' rows. A device of tpu7x is half a chip.
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
    """Rates of a device; None where they are not known (a CPU)."""
    kind = device.device_kind.lower().replace(" lite", "e")  # 'tpu v5e' for 'TPU v5 lite'
    return next((chip for name, chip in CHIPS.items() if name in kind), None)

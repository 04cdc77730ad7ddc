"""Peak rates of accelerators, from their makers' data sheets."""

import jax

# Dense bfloat16 FLOP/s a device, by a part of `device_kind` in lower case; first match counts.
PEAK_FLOPS = (
    ("h200", 989e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("v6e", 918e12),
    ("v5e", 197e12),
    ("v5", 459e12),  # v5p
    ("v4", 275e12),
    ("tpu7x", 1153.5e12),  # a device is half a chip
)


def kind(device: jax.Device) -> str:
    """Returns the device's kind in lower case, as in the tables: 'tpu v5e' for 'TPU v5 lite'."""
    return device.device_kind.lower().replace(" lite", "e")


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None where not known (a CPU)."""
    return next((peak for name, peak in PEAK_FLOPS if name in kind(device)), None)

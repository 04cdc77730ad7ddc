"""The target platform of a traced function, which may differ from the default backend."""

import math

import jax


def name() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the active mesh, else of the first device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def alone() -> bool:
    """Whether arrays are local to one device, so that a kernel can be applied to them directly."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes) == 1

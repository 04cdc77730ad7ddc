"""The platform that a traced function will run on, which need not be the default one."""

import math

import jax


def name() -> str:
    """Returns "cpu", "gpu" or "tpu": that of the active mesh, else of JAX's first device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def alone() -> bool:
    """Whether arrays here are one device's own, so that a kernel may take them as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes) == 1

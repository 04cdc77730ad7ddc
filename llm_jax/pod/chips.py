"""Devices to compile for without having them."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from llm_jax.config import ConfigError

# Name of a topology's kind: a shape that has all axes and an accelerator type for libtpu.
TPUS = {"v4": "2x2x4", "v5e": "4x4", "v5p": "4x4x4", "v6e": "4x4", "tpu7x": "2x2x2"}
GPUS = ("gpu", "cuda", "a100", "h100", "h200", "b200")
KNOWN = ", ".join(f"{kind}:{shape}" for kind, shape in TPUS.items())


def devices(topology: str, slices: int = 1) -> list:
    """Devices to compile for: `v5p:4x4x4` (described by libtpu), or this machine's `cpu:8`.

    Raises:
      ConfigError: no such topology, no libtpu, or fewer devices here than asked for.
    """
    name, _, shape = topology.partition(":")
    if slices < 1:
        raise ConfigError(f"--slices={slices}: must be at least 1")
    if name in ("cpu", "gpu") and shape.isdigit() and int(shape):
        return _here(topology, name, int(shape) * slices)
    sizes = shape.split("x")
    if name not in TPUS or not all(s.isdigit() and int(s) for s in sizes):
        gpu = "GPUs are compiled for only where they are (gpu:8); " if name in GPUS else ""
        raise ConfigError(f"--topology={topology}: {gpu}there are {KNOWN} and other shapes of "
                          "these, and cpu:8 or another number of simulated devices")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={topology}: compiling for a TPU needs libtpu: pip install "
                          "libtpu (no TPU is needed); cpu:8 works without it")
    return _described(topology, slices)


def _described(topology: str, slices: int) -> list:
    # Else libtpu asks a cloud's metadata server what it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")
    # Two plans may be made at a time: neither has a TPU to itself.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"wrap": wraps(topology)}
    options |= {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        with quiet():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=topology, num_slices=slices, **options
            ).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--topology={topology}: libtpu knows no such shape ({reason}); one that "
                          f"it does is {TPUS[topology.partition(':')[0]]}") from error


def slice_of(device: jax.Device) -> int:
    """Number of the slice of TPUs, or node of GPUs, inside which devices have their fast links."""
    gpu = device.platform == "gpu"
    return device.process_index if gpu else getattr(device, "slice_index", 0) or 0


def wraps(topology: str) -> tuple[bool, bool, bool]:
    """Sides of a slice of TPUs that are rings: libtpu takes them for open where it is not told.

    Cubes of 4x4x4 are joined by optical switches, which close all sides of a slice of whole cubes;
    v5e's and v6e's sides are closed where they are a pod's, 16 long. Jouppi et al. 2023,
    https://arxiv.org/abs/2304.01433, section 2; slice by slice in Google's MaxText,
    accelerator_to_spec_map.py.
    """
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    if len(sides) == 3:
        return (all(side % 4 == 0 for side in sides),) * 3
    return tuple(side == 16 for side in sides) + (False,)


def _here(topology: str, kind: str, count: int) -> list:
    with contextlib.suppress(RuntimeError):  # JAX has started: what it has must do
        if kind == "cpu":
            jax.config.update("jax_num_cpu_devices", count)
    try:
        present = jax.devices(kind)
    except RuntimeError:
        present = []
    if len(present) < count:
        raise ConfigError(f"--topology={topology}: this machine has {len(present)} such devices")
    return present[:count]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends file descriptor 2 to /dev/null: libtpu warns there of TPUs that are not there."""
    with open(os.devnull, "w") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

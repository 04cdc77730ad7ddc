"""Devices to compile for without having them."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import topologies

from llm_jax.config import ConfigError
from llm_jax.sharding import hardware

# Name of a topology's kind: a shape that has all axes and an accelerator type for libtpu.
TPUS = {"v4": "2x2x4", "v5e": "4x4", "v5p": "4x4x4", "v6e": "4x4", "tpu7x": "2x2x2"}


class Gpu(NamedTuple):
    """What XLA asks of a GPU, its memory and rate apart.

    Attributes:
      name: as its driver gives it.
      capability: CUDA compute capability's first number.
      cores: multiprocessors.
      clock: GHz.
      cache: MiB of L2.
      shared: KiB of shared memory of a multiprocessor, of which a block may have all but one.
    """

    name: str
    capability: int
    cores: int
    clock: float
    cache: int
    shared: int


# NVIDIA's white papers of each architecture; shared memory: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"; GB200, and clocks: XLA's backends/gpu/target_config.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 1.41, 40, 164),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 50, 228),
    "h200": Gpu("NVIDIA H200", 9, 132, 1.98, 50, 228),
    "b200": Gpu("NVIDIA B200", 10, 148, 1.965, 126, 228),
    "gb200": Gpu("NVIDIA GB200", 10, 152, 2.062, 126, 228),
}
OF_ALL_GPUS = {
    "threads_per_warp": 32, "threads_per_block_limit": 1024, "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
    "shared_memory_per_block": 49152,
}  # fmt: skip
KNOWN = ", ".join(f"{kind}:{shape}" for kind, shape in TPUS.items())
KNOWN += ", " + ", ".join(f"{kind}:8x8" for kind in GPUS)


def devices(topology: str, slices: int = 1) -> list:
    """Devices to compile for: `v5p:4x4x4`, `h100:8x8` (nodes x GPUs), or this machine's `cpu:8`.

    The first two are descriptions, for libtpu and for JAX's plugin of CUDA.

    Raises:
      ConfigError: no such topology, no compiler of it, or fewer devices here than asked for.
    """
    name, _, shape = topology.partition(":")
    if slices < 1 or slices > 1 and name in GPUS:
        raise ConfigError(f"--slices={slices}: must be at least 1, and of GPUs, whose nodes "
                          "--topology has, 1")
    if name in ("cpu", "gpu") and shape.isdigit() and int(shape):
        return _here(topology, name, int(shape) * slices)
    sizes = shape.split("x")
    if name not in TPUS | GPUS or not all(s.isdigit() and int(s) for s in sizes):
        raise ConfigError(f"--topology={topology}: there are {KNOWN} and other shapes of these; "
                          "of what is here cpu:8, or another number of simulated devices, and "
                          "gpu:8")
    return _gpus(topology, name, sizes) if name in GPUS else _described(topology, slices)


def _needs(topology: str, module: str, requirements: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # not even the package that it is part of
        found = None
    if found is None:
        raise ConfigError(f"--topology={topology}: its compiler is not installed: pip install "
                          f"-r {requirements} (no such device is needed); cpu:8 works without it")


def _gpus(topology: str, name: str, sizes: list[str]) -> list:
    if len(sizes) != 2:
        raise ConfigError(f"--topology={topology}: of GPUs it is nodes x GPUs a node: {name}:8x8")
    _needs(topology, "jax_plugins.xla_cuda12", "requirements-plan-gpu.txt")
    shape, target = "1x" + "x".join(sizes), _target(GPUS[name])
    with quiet():
        return topologies.get_topology_desc(
            platform="cuda", topology=shape, target_config=target
        ).devices


def _target(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto, as text."""
    chip = next(chip for name, chip in hardware.CHIPS.items() if name in gpu.name.lower())
    info = {
        "core_count": gpu.cores, "clock_rate_ghz": gpu.clock, "l2_cache_size": gpu.cache << 20,
        "device_memory_size": int(chip.hbm), "memory_bandwidth": int(chip.hbm_rate),
        "shared_memory_per_core": gpu.shared << 10,
        "shared_memory_per_block_optin": gpu.shared - 1 << 10,
        "fpus_per_core": 64 if gpu.capability == 8 else 128,
    } | OF_ALL_GPUS  # fmt: skip
    lines = " ".join(f"{key}: {value}" for key, value in info.items())
    return (
        f"gpu_device_info {{ {lines} cuda_compute_capability {{ major: {gpu.capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'runtime_version {{ major: 12 minor: 8 }} device_description_str: "{gpu.name}"'
    )


def _described(topology: str, slices: int) -> list:
    _needs(topology, "libtpu", "requirements-plan.txt")
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

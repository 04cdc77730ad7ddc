"""Device descriptions for ahead-of-time compilation without the devices."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import topologies

from llm_jax.config import ConfigError
from llm_jax.sharding import hardware

# Kind of topology: a shape with all axes, and libtpu's accelerator type.
TPUS = {"v4": "2x2x4", "v5e": "4x4", "v5p": "4x4x4", "v6e": "4x4", "tpu7x": "2x2x2"}


class Gpu(NamedTuple):
    """XLA's description of a GPU, except for its memory and rate.

    Attributes:
      name: as reported by the driver.
      capability: major version of the CUDA compute capability.
      cores: number of multiprocessors.
      clock: GHz.
      cache: L2 cache in MiB.
      shared: shared memory per multiprocessor in KiB; a block may use all but 1 KiB.
    """

    name: str
    capability: int
    cores: int
    clock: float
    cache: int
    shared: int


# Sources: NVIDIA's architecture white papers; shared memory: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"; GB200 and clocks: XLA's backends/gpu/target_config.
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
    """Returns devices to compile for: `v5p:4x4x4`, `h100:8x8` (nodes x GPUs), or local `cpu:8`.

    The first two are only described, to libtpu and to JAX's CUDA plugin.

    Raises:
      ConfigError: an unknown topology, a missing compiler, or too few local devices.
    """
    name, _, shape = topology.partition(":")
    if slices < 1 or slices > 1 and name in GPUS:
        raise ConfigError(f"--slices={slices}: must be at least 1, and 1 for GPUs, whose nodes are "
                          "in --topology")
    if name in ("cpu", "gpu") and shape.isdigit() and int(shape):
        return _here(topology, name, int(shape) * slices)
    sizes = shape.split("x")
    if name not in TPUS | GPUS or not all(s.isdigit() and int(s) for s in sizes):
        raise ConfigError(f"--topology={topology}: must be like {KNOWN}, in these or other shapes, "
                          "or local: cpu:8, with any number of simulated devices, or gpu:8")
    return _gpus(topology, name, sizes) if name in GPUS else _described(topology, slices)


def _needs(topology: str, module: str, requirements: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent package is missing too
        found = None
    if found is None:
        raise ConfigError(f"--topology={topology}: its compiler is not installed: pip install "
                          f"-r {requirements} (no such device is needed); cpu:8 works without it")


def _gpus(topology: str, name: str, sizes: list[str]) -> list:
    if len(sizes) != 2:
        raise ConfigError(f"--topology={topology}: must be nodes x GPUs per node: {name}:8x8")
    _needs(topology, "jax_plugins.xla_cuda12", "requirements-plan-gpu.txt")
    shape, target = "1x" + "x".join(sizes), _target(GPUS[name])
    with quiet():
        return topologies.get_topology_desc(
            platform="cuda", topology=shape, target_config=target
        ).devices


def _target(gpu: Gpu) -> str:
    """Returns XLA's GpuTargetConfigProto in text format."""
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
    # Otherwise libtpu queries the metadata server of a cloud.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")
    # Allow several plans at a time: none of them holds a TPU.
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
        raise ConfigError(f"--topology={topology}: libtpu does not support this shape ({reason}); "
                          f"a supported one is {TPUS[topology.partition(':')[0]]}") from error


def slice_of(device: jax.Device) -> int:
    """Returns the index of the TPU slice, or GPU node, within which devices have fast links."""
    gpu = device.platform == "gpu"
    return device.process_index if gpu else getattr(device, "slice_index", 0) or 0


def wraps(topology: str) -> tuple[bool, bool, bool]:
    """Returns which sides of a TPU slice have wraparound links; libtpu's default is none.

    Optical switches join 4x4x4 cubes, and close all sides of a slice of whole cubes; sides of v5e
    and v6e are closed if they span a pod, 16 chips. Jouppi et al. 2023,
    https://arxiv.org/abs/2304.01433, section 2; per slice in Google's MaxText,
    accelerator_to_spec_map.py.
    """
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    if len(sides) == 3:
        return (all(side % 4 == 0 for side in sides),) * 3
    return tuple(side == 16 for side in sides) + (False,)


def _here(topology: str, kind: str, count: int) -> list:
    with contextlib.suppress(RuntimeError):  # JAX has started: use its devices
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
    """Redirects file descriptor 2 to /dev/null: libtpu prints warnings about missing TPUs."""
    with open(os.devnull, "w") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

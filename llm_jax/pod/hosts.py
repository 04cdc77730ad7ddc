"""Several processes as one job: found from the environment, joined before JAX has a backend.

Looked for in this order; one process, or none of these, is a run like any other:

  JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm: what `srun` starts, as JAX finds it, but with all GPUs of a node for each process
  TPU: what JAX finds of a pod or several slices, on GKE or TPU VMs

A process that dies is missed after LLM_JAX_HEARTBEAT_SECONDS (60); then all others end too.
"""

import importlib.util
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.config import ConfigError
from llm_jax.train import Diverged, Restart

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = "LLM_JAX_HEARTBEAT_SECONDS", 60
LOST = 1  # exit code where another process was lost


class Hosts(NamedTuple):
    """How many processes there are, and which one this is."""

    count: int
    index: int


def find(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns arguments of jax.distributed.initialize; None where this process is all of a job."""
    if any(name in environ for name in EXPLICIT):
        address, count, index = (environ.get(name, "") for name in EXPLICIT)
        whole = count.isdecimal() and index.isdecimal() and int(index) < int(count)
        if not whole or not re.fullmatch(r".+:\d+", address):
            given = ", ".join(f"{name}={environ.get(name)}" for name in EXPLICIT)
            raise ConfigError(f"{given}: must be host:port of process 0, the number of processes, "
                              "and which of them this is, from 0")
        if int(count) == 1:
            return None
        return {"coordinator_address": address, "num_processes": int(count),
                "process_id": int(index), "cluster_detection_method": "deactivate"}  # fmt: skip
    if {"SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= environ.keys():
        count, index = int(environ["SLURM_NTASKS"]), int(environ["SLURM_PROCID"])
        if count == 1:
            return None
        return {"num_processes": count, "process_id": index, "cluster_detection_method": "slurm"}
    tpu = _tpu(environ)
    return tpu and {"cluster_detection_method": tpu}


def _tpu(environ: Mapping[str, str]) -> str | None:
    """JAX's name for how the processes on a TPU find each other; None: no TPU, or one process."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    wanted = "tpu" in environ.get("JAX_PLATFORMS", "tpu")
    if not chips or not wanted or importlib.util.find_spec("libtpu") is None:
        return None
    if "TPU_WORKER_HOSTNAMES" not in environ:
        return None if "TPU_SKIP_MDS_QUERY" in environ else "gcetpu"
    alone = environ["TPU_WORKER_HOSTNAMES"] == "localhost"
    return None if alone and "MEGASCALE_NUM_SLICES" not in environ else "gketpu"


def start() -> Hosts | None:
    """Joins the job that the environment describes; to be called before JAX has a backend."""
    job = find(os.environ)
    if job is None:
        return None
    import jax

    patience = _seconds("LLM_JAX_START_SECONDS", 300)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", True)
    sys.excepthook = _end_at
    try:
        jax.distributed.initialize(
            **job, initialization_timeout=patience, heartbeat_timeout_seconds=_seconds(*HEARTBEAT)
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        named = ", ".join(f"{key}={value}" for key, value in job.items())
        raise ConfigError(f"no job found within {patience} s (LLM_JAX_START_SECONDS; {named}): "
                          f"{reason}") from error
    slurm = job["cluster_detection_method"] == "slurm"
    if slurm and "JAX_LOCAL_DEVICE_IDS" not in os.environ:  # there JAX takes one GPU a process
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    if "num_processes" in job:  # without asking JAX, which would have it make a backend
        return Hosts(job["num_processes"], job["process_id"])
    return Hosts(jax.process_count(), jax.process_index()) if jax.process_count() > 1 else None


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: must be a whole number of seconds")
    return int(text)


def joined() -> bool:
    """Whether this process is one of several."""
    return sys.excepthook is _end_at


@contextmanager
def together(hosts: Hosts | None) -> Iterator[None]:
    """Ends this process when its block fails, without JAX's shutdown barrier.

    A process that others have left waits as long as a heartbeat may take, in which JAX names the
    one that died and ends this one; then it ends by itself, with exit code LOST.
    """
    if hosts is None:
        yield
        return
    try:
        yield
    except (ConfigError, Diverged, Restart):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # this process's own trouble
            raise
        if type(error).__name__ != "JaxRuntimeError":  # a collective's says all in a line
            traceback.print_exc()
        seconds = _seconds(*HEARTBEAT)
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:300]
        print(
            f"error: process {hosts.index} of {hosts.count}: {reason}\n"
            f"Most likely another process has died; which one is known within {seconds} s. The "
            "same command resumes.",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(seconds + 5)
        end(LOST)


def _end_at(*error) -> None:
    sys.__excepthook__(*error)
    end(1)


def end(code: int) -> None:
    """Ends this process at once, without JAX's shutdown barrier over all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

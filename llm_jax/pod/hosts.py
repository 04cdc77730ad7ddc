"""Several processes as one job: found from the environment, joined before JAX has a backend.

Looked for in this order; one process, or none of these, is a run like any other:

  LLM_JAX_COORDINATOR (host:port), LLM_JAX_NUM_PROCESSES, LLM_JAX_PROCESS_ID
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm: a step's SLURM_PROCID, SLURM_NTASKS and node list, so what `srun` starts; not by JAX's own
    detection, which would leave a process one GPU of its node
  TPU: what JAX itself detects of a pod or several slices, on GKE or TPU VMs

A process that dies is missed after LLM_JAX_HEARTBEAT_SECONDS (60); then all others end too.
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llm_jax.config import ConfigError
from llm_jax.train import Diverged, Restart

EXPLICIT = (
    ("LLM_JAX_COORDINATOR", "LLM_JAX_NUM_PROCESSES", "LLM_JAX_PROCESS_ID"),
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
HEARTBEAT_SECONDS = "LLM_JAX_HEARTBEAT_SECONDS"
START_SECONDS = "LLM_JAX_START_SECONDS"
LOST = 1  # exit code where another process was lost


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Where process 0 listens (host:port), how many processes there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def find(environ: Mapping[str, str]) -> Hosts | None:
    """Returns the job that variables or Slurm describe; None where this process is all of it.

    Raises:
      ConfigError: naming a variable that is missing or cannot be.
    """
    for names in EXPLICIT:
        if any(name in environ for name in names):
            return _checked(environ, *names[1:], _address(environ, names[0]))
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" in environ:
        return _slurm(environ)
    return None


def _address(environ: Mapping[str, str], name: str) -> str:
    address = _needed(environ, name)
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"{name}={address}: must be host:port of process 0")
    return address


def _needed(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise ConfigError(f"{name}: is not set, where others of its kind are")
    return environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _needed(environ, name)
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: must be a whole number")
    return int(text)


def _checked(environ, count: str, index: str, address: str) -> Hosts | None:
    n, i = _number(environ, count), _number(environ, index)
    if n < 1:
        raise ConfigError(f"{count}={n}: must be at least 1")
    if i >= n:
        raise ConfigError(f"{index}={i}: must be 0 to {n - 1}, as {count}={n}")
    return Hosts(address, n, i) if n > 1 else None


def _slurm(environ: Mapping[str, str]) -> Hosts | None:
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    nodes = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST"
    # "a", "a,b", "a[01-03,7],b": the first name is that of process 0's node.
    listed = _needed(environ, nodes)
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", listed)
    if not match:
        raise ConfigError(f"{nodes}={listed}: is no list of nodes")
    # A port that two jobs on a node do not share, out of the range that others take freely.
    port = 20_000 + _number(environ, "SLURM_JOB_ID") % 10_000
    first = match[1] + (match[2] or "")
    return _checked(environ, count, "SLURM_PROCID", f"{first}:{port}")


def _tpu(environ: Mapping[str, str]) -> str | None:
    """JAX's name for how the processes on a TPU find each other; None: no TPU, or one process."""
    if "SLURM_STEP_ID" in environ or any(name in environ for names in EXPLICIT for name in names):
        return None
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    wanted = "tpu" in environ.get("JAX_PLATFORMS", "tpu")
    if not chips or not wanted or importlib.util.find_spec("libtpu") is None:
        return None
    if "TPU_WORKER_HOSTNAMES" not in environ:
        return None if "TPU_SKIP_MDS_QUERY" in environ else "gcetpu"
    alone = environ["TPU_WORKER_HOSTNAMES"] == "localhost"
    return None if alone and "MEGASCALE_NUM_SLICES" not in environ else "gketpu"


def start() -> Hosts | None:
    """Joins the job that the environment describes; to be called before JAX has a backend.

    Raises:
      ConfigError: what `find` refuses, or process 0 does not answer.
    """
    hosts = find(os.environ)
    tpu = _tpu(os.environ) if hosts is None else None
    if hosts is None and tpu is None:
        return None
    import jax

    heartbeat = _number({HEARTBEAT_SECONDS: "60"} | dict(os.environ), HEARTBEAT_SECONDS)
    patience = _number({START_SECONDS: "300"} | dict(os.environ), START_SECONDS)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", True)
    sys.excepthook = _end_at
    where = (hosts.coordinator, hosts.count, hosts.index) if hosts else (None, None, None)
    try:
        jax.distributed.initialize(
            *where,
            cluster_detection_method=tpu or "deactivate",
            initialization_timeout=patience,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        this = f"process {hosts.index} of {hosts.count}" if hosts else f"this worker ({tpu})"
        at = f"at {hosts.coordinator} " if hosts else ""
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"{this} found no job {at}within {patience} s ({START_SECONDS}): {reason}"
        ) from error
    if hosts is None and jax.process_count() > 1:
        return Hosts("", jax.process_count(), jax.process_index())
    return hosts


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
        seconds = _number({HEARTBEAT_SECONDS: "60"} | dict(os.environ), HEARTBEAT_SECONDS)
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

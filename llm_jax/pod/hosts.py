"""Several processes as one job: found from the environment, joined before JAX has a backend.

Looked for in this order; one process, or none of these, is a run like any other:

  LLM_JAX_COORDINATOR (host:port), LLM_JAX_NUM_PROCESSES, LLM_JAX_PROCESS_ID
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm: a step's SLURM_PROCID, SLURM_NTASKS and node list, so what `srun` starts
  TPU: TPU_WORKER_HOSTNAMES and TPU_WORKER_ID (GKE), else the TPU VM's metadata server; of several
    slices also MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID and MEGASCALE_COORDINATOR_ADDRESS, of
    which process 0's host is

A process that dies is missed after LLM_JAX_HEARTBEAT_SECONDS (60); then all others end too.
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
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
TPU_PORT = 8482  # JAX's own choice
LOST = 1  # exit code where another process was lost


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Where process 0 listens (host:port), how many processes there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def find(environ: Mapping[str, str], metadata: Callable[[str], str] | None = None) -> Hosts | None:
    """Returns the job that the environment describes; None where this process is all of it.

    Args:
      metadata: asks a TPU VM's metadata server for an attribute; None: not on a TPU VM.

    Raises:
      ConfigError: naming a variable that is missing or cannot be.
    """
    for names in EXPLICIT:
        if any(name in environ for name in names):
            return _checked(environ, *names, _address(environ, names[0]))
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" in environ:
        return _slurm(environ)
    workers = environ.get("TPU_WORKER_HOSTNAMES", "localhost")
    if (workers != "localhost" or _slices(environ) > 1) and _has_tpu(environ):
        return _tpu(environ, workers.split(","))
    if metadata is not None:
        # Of each worker a name, or as it used to be name:id:address.
        workers = [w.split(":")[-1] for w in metadata("worker-network-endpoints").split(",")]
        known = {"TPU_WORKER_ID": metadata("agent-worker-number")}
        known |= re.findall(r"^\s*(MEGASCALE_\w+):\s*'?([^'\n]*)", metadata("tpu-env"), re.M)
        return _tpu(known | dict(environ), workers)
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


def _checked(environ, where: str, count: str, index: str, address: str) -> Hosts | None:
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
    return _checked(environ, nodes, count, "SLURM_PROCID", f"{first}:{port}")


def _tpu(environ: Mapping[str, str], workers: list[str]) -> Hosts | None:
    """The job of `workers`, or of as many in each of several slices; numbered as JAX does."""
    n, slices = len(workers), _slices(environ)
    index = _number(environ, "TPU_WORKER_ID")
    if index >= n:
        raise ConfigError(f"TPU_WORKER_ID={index}: must be 0 to {n - 1}, one of the "
                          f"workers {','.join(workers)}")
    first, nth = workers[0].strip(), 0
    if slices > 1:
        first = _needed(environ, "MEGASCALE_COORDINATOR_ADDRESS").split(":")[0]
        nth = _number(environ, "MEGASCALE_SLICE_ID")
        if nth >= slices:
            raise ConfigError(f"MEGASCALE_SLICE_ID={nth}: must be 0 to {slices - 1}, as "
                              f"MEGASCALE_NUM_SLICES={slices}")
    return Hosts(f"{first}:{TPU_PORT}", slices * n, nth * n + index) if slices * n > 1 else None


def _slices(environ: Mapping[str, str]) -> int:
    name = "MEGASCALE_NUM_SLICES"
    return _number(environ, name) if environ.get(name) else 1


def _has_tpu(environ: Mapping[str, str]) -> bool:
    platforms = environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _metadata_server(environ: Mapping[str, str]) -> Callable[[str], str] | None:
    """Asks about a TPU VM's workers; None elsewhere, found out without a word on the network."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    if not chips or not _has_tpu(environ) or environ.get("TPU_SKIP_MDS_QUERY"):
        return None

    def ask(attribute: str) -> str:
        host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
        url = f"http://{host}/computeMetadata/v1/instance/attributes/{attribute}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except OSError as error:
            raise ConfigError(
                f"{url}: {error}; set TPU_SKIP_MDS_QUERY=1 to train on this TPU VM alone"
            ) from error

    return ask


def start() -> Hosts | None:
    """Joins the job that the environment describes; to be called before JAX has a backend.

    Raises:
      ConfigError: what `find` refuses, or process 0 does not answer.
    """
    hosts = find(os.environ, _metadata_server(os.environ))
    if hosts is None:
        return None
    import jax

    heartbeat = _number({HEARTBEAT_SECONDS: "60"} | dict(os.environ), HEARTBEAT_SECONDS)
    patience = _number({START_SECONDS: "300"} | dict(os.environ), START_SECONDS)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", True)
    sys.excepthook = _end_at
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.count,
            hosts.index,
            cluster_detection_method="deactivate",
            initialization_timeout=patience,
            heartbeat_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"process {hosts.index} of {hosts.count} found no job at {hosts.coordinator} within "
            f"{patience} s ({START_SECONDS}): {reason}"
        ) from error
    return hosts


def joined() -> bool:
    """Whether this process is one of several."""
    return sys.excepthook is _end_at


@contextmanager
def together(hosts: Hosts | None) -> Iterator[None]:
    """Ends this process for good when what it runs fails: the others must not be waited for.

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
    """Ends this process at once, without the farewell that waits for all others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

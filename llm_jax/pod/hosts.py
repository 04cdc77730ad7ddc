"""Multi-process jobs: detected from the environment, and joined before JAX has a backend.

Checked in this order; with none of these, or a single process, it is an ordinary run:

  JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm: processes started by `srun`, as detected by JAX, but each with all GPUs of its node
  TPU: a pod or several slices, on GKE or TPU VMs, as detected by JAX

A dead process is detected after LLM_JAX_HEARTBEAT_SECONDS (60); then all others end too, with a
message that names it.
"""

import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax import record
from llm_jax.config import ConfigError
from llm_jax.train import Diverged, Restart

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = "LLM_JAX_HEARTBEAT_SECONDS", 60
LOST = 1  # exit code if another process was lost
ENDED = "llm_jax/ended"  # the first process that ended by its own error: [exit code, message]


TIES: list[socket.socket] = []  # sockets of process 0, open during its lifetime


class Hosts(NamedTuple):
    """Number of processes, index of this one, and JAX's client of their key-value store."""

    count: int
    index: int
    client: Any

    def __str__(self) -> str:
        return f"process {self.index} of {self.count} on {socket.gethostname()}"


def find(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns arguments of jax.distributed.initialize; None if this is the only process."""
    if any(name in environ for name in EXPLICIT):
        address, count, index = (environ.get(name, "") for name in EXPLICIT)
        whole = count.isdecimal() and index.isdecimal() and int(index) < int(count)
        if not whole or not re.fullmatch(r".+:\d+", address):
            given = ", ".join(f"{name}={environ.get(name)}" for name in EXPLICIT)
            raise ConfigError(f"{given}: must be host:port of process 0, the number of processes, "
                              "and the index of this one, from 0")
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
    """Returns JAX's cluster detection method for TPUs; None: no TPU, or a single process."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    wanted = "tpu" in environ.get("JAX_PLATFORMS", "tpu")
    if not chips or not wanted or importlib.util.find_spec("libtpu") is None:
        return None
    if "TPU_WORKER_HOSTNAMES" not in environ:
        return None if "TPU_SKIP_MDS_QUERY" in environ else "gcetpu"
    alone = environ["TPU_WORKER_HOSTNAMES"] == "localhost"
    return None if alone and "MEGASCALE_NUM_SLICES" not in environ else "gketpu"


def start() -> Hosts | None:
    """Joins the job of the environment; must be called before JAX has a backend."""
    job = find(os.environ)
    if job is None:
        return None
    import jax
    from jax._src.distributed import global_state  # the client is not public

    patience = _seconds("LLM_JAX_START_SECONDS", 300)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", True)
    sys.excepthook = _end_at
    _slow_abort()
    late = threading.Timer(patience, _missing, (global_state, patience))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(  # aborts this process after its own timeout
            **job, initialization_timeout=patience + 60,
            heartbeat_timeout_seconds=_seconds(*HEARTBEAT),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        named = ", ".join(f"{key}={value}" for key, value in job.items())
        raise ConfigError(f"no job found ({named}): {reason}") from error
    finally:
        late.cancel()
    slurm = job["cluster_detection_method"] == "slurm"
    if slurm and "JAX_LOCAL_DEVICE_IDS" not in os.environ:  # JAX's default is one GPU per process
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    # Not jax.process_count(), which would create a backend.
    hosts = Hosts(global_state.num_processes, global_state.process_id, global_state.client)
    log, handler = logging.getLogger("llm_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{hosts}: %(message)s"))
    log.handlers, log.propagate = [handler], False
    return hosts if hosts.count > 1 else None


def _missing(state: Any, patience: int) -> None:
    """Ends this process after the timeout for the start of the others."""
    address = state.coordinator_address or "unknown"
    missing = "another has not started"
    if state.process_id:
        try:
            socket.create_connection(address.rsplit(":", 1), timeout=5).close()
        except OSError:
            missing = f"process 0, at {address}, does not answer"
    text = f"waited {patience} s (LLM_JAX_START_SECONDS) for all to start; {missing}"
    print(f"error: {named()}{text}. The same command tries again.", file=sys.stderr, flush=True)
    end(LOST)


def _slow_abort() -> None:
    """Delays abort() by a few seconds.

    JAX aborts a process as soon as another is lost; during the delay, `_watch` reports which one,
    and ends this process with LOST. The signal handler is called with its number: sleep(6).
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: must be a whole number of seconds")
    return int(text)


def joined() -> bool:
    """Whether this process is one of several."""
    return sys.excepthook is _end_at


def named() -> str:
    """Returns a message prefix that names process and host; "" for a single process."""
    if not joined():
        return ""
    from jax._src.distributed import global_state as state

    return f"{Hosts(state.num_processes, state.process_id, None)}: "


def slowest_input(hosts: Hosts) -> Callable[[Any], None]:
    """Returns a hook that logs the process that waited longest for batches, and its wait.

    Step times are equal on all processes, since each waits for the others; input waits are not.
    """

    def hook(info):
        if "input_seconds" not in info.values:
            return
        key, own = "llm_jax/input/", info.values["input_seconds"]
        hosts.client.key_value_set(f"{key}{hosts.index}", repr(own), allow_overwrite=True)
        if hosts.index == 0:  # others may still have the previous value
            rows = hosts.client.key_value_dir_get(key)
            seconds, name = max((float(value), name) for name, value in rows)
            process = float(name.rpartition("/")[2])
            info.values |= {"slowest_input_seconds": seconds, "slowest_input_process": process}

    return hook


@contextmanager
def together(hosts: Hosts | None, workdir: str | Path) -> Iterator[None]:
    """Runs a block in one of several processes, which end together if one of them fails.

    First checks that code, versions and folder agree. A failing process reports its error to the
    others, without JAX's shutdown barrier; if a collective fails, waits until the dead process is
    identified.
    """
    if hosts is None:
        yield
        return
    from llm_jax.train import processes

    done = threading.Event()
    _watch(hosts, done)
    try:
        processes.agree(code())
        processes.share(workdir)
        yield
    except Exception as error:
        own = isinstance(error, (ConfigError, Diverged, Restart, OSError, MemoryError))
        if not own and "RESOURCE_EXHAUSTED" not in str(error):  # probably a failed collective
            time.sleep(_seconds(*HEARTBEAT) + 5)  # _watch ends this process, if another has died
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:500]
        code_ = 2 if isinstance(error, ConfigError) else LOST
        done.set()
        with suppress(Exception):
            hosts.client.key_value_set(ENDED, json.dumps([code_, f"{hosts} has ended: {reason}"]))
            time.sleep(2)  # the store ends with process 0
        raise
    finally:
        done.set()


def _watch(hosts: Hosts, done: threading.Event) -> None:
    """Starts threads that end this process when another has died or reported a failure."""
    client, everyone = hosts.client, range(hosts.count)
    client.key_value_set(f"llm_jax/host/{hosts.index:06}", socket.gethostname())
    client.wait_at_barrier("llm_jax/hosts", 10**6)
    names = [name for _, name in sorted(client.key_value_dir_get("llm_jax/host/"))]

    def lost(dead):
        if not done.is_set():
            named = ", ".join(f"process {i} of {hosts.count} on {names[i]}" for i in dead)
            _tell_end(f"{named} is lost: it died, or its network failed. See its log and the "
                      "scheduler's", hosts)  # fmt: skip

    def living():
        with suppress(Exception):
            while True:  # the call is in progress when JAX declares a process dead, after which
                #          no new call can start
                if dead := [*{*everyone} - client.get_live_nodes([*everyone]).keys()]:
                    return lost(dead)
                time.sleep(1)

    def told():
        with suppress(Exception):
            code_, text = json.loads(client.blocking_key_value_get(ENDED, 10**9))
            if not done.is_set():
                _tell_end(text, hosts, code_)

    def tied():
        with suppress(OSError):  # reset, as it was never accepted
            tie.recv(1)
        time.sleep(1)  # time for process 0 to report an error
        lost([0])

    tie = _tie(hosts)
    for watch in (living, told, *[tied] * (tie is not None)):
        threading.Thread(target=watch, daemon=True).start()


def _tie(hosts: Hosts) -> socket.socket | None:
    """Opens a connection to process 0, which ends with it; None behind a firewall.

    JAX's own connection ends at the same time, in a thread that then aborts this process.
    """
    from jax._src.distributed import global_state

    if hosts.index == 0:  # connections need no accept(): the system queues them
        TIES.append(socket.create_server(("", 0), backlog=4096))
        hosts.client.key_value_set("llm_jax/port", str(TIES[0].getsockname()[1]))
        return None
    port = int(hosts.client.blocking_key_value_get("llm_jax/port", 10**6))
    try:
        host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
        tie = socket.create_connection((host, port), timeout=9)
        tie.settimeout(None)
        return tie
    except OSError:
        return None


def _tell_end(text: str, hosts: Hosts, code_: int = LOST) -> None:
    again = "The same command resumes" if code_ == LOST else "A restart would fail again"
    print(f"error: {text}. {hosts} ends too. {again}.", file=sys.stderr, flush=True)
    if hosts.index == 0:
        time.sleep(2)  # otherwise others would report it as the lost one
    end(code_)


def code() -> dict[str, str]:
    """Returns digests of sources and versions, which must be the same on all hosts."""
    root = Path(__file__).parents[1]
    digest = lambda file: hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    facts = {f"code of {file.relative_to(root)}": digest(file) for file in root.rglob("*.py")}
    facts |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return facts | record.versions()


def _end_at(*error) -> None:
    sys.__excepthook__(*error)
    end(1)


def end(code: int) -> None:
    """Ends this process immediately, without JAX's shutdown barrier."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

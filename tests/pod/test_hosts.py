"""Tests of multi-process runs: detection, equality with one process, stopping, resuming."""

import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_jax.config import ConfigError
from llm_jax.data.prepare import prepare
from llm_jax.pod import hosts, watchdog
from llm_jax.pod.hosts import find
from llm_jax.train import processes
from llm_jax.train.metrics import read

ROOT = Path(__file__).resolve().parents[2]
TIMING = {"tokens_per_second", "mfu", "input_seconds", "step_seconds", "goodput",
          "slowest_input_seconds", "slowest_input_process"}  # fmt: skip
HERE = socket.gethostname()
HEARTBEAT = 30  # a busy machine may hold a process up for some seconds

JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "10007", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4",
    "SLURM_STEP_NODELIST": "node[007-009,12],other", "SLURM_LOCALID": "0",
}  # fmt: skip


def test_a_job_is_found(monkeypatch):
    explicit = {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}
    for environ in (JAX, JAX | SLURM):
        assert find(environ) == explicit | {"cluster_detection_method": "deactivate"}
    of_it = {"num_processes": 4, "process_id": 3, "cluster_detection_method": "slurm"}
    assert find(SLURM) == of_it

    from jax._src.clusters import SlurmCluster  # which that names, and it finds the same

    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.name == "slurm" and SlurmCluster.is_env_present()
    assert SlurmCluster.get_coordinator_address(1, "1") == "node007:1"
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (4, 3)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # no step: no srun
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process_is_a_run_like_any_other(environ):
    assert find(environ) is None


@pytest.mark.parametrize(
    ("environ", "detected"),
    [
        ({}, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1", "JAX_PLATFORMS": "cpu"}, None),
        (JAX | {"TPU_WORKER_HOSTNAMES": "w0,w1"}, "deactivate"),
        (SLURM | {"TPU_WORKER_HOSTNAMES": "w0,w1"}, "slurm"),
    ],
)
def test_tpus_are_left_to_jax(environ, detected, monkeypatch):
    from jax._src.clusters import ClusterEnv

    method = lambda: (find(environ) or {}).get("cluster_detection_method")
    assert method() in (None, "deactivate", "slurm")  # no chips here
    monkeypatch.setattr(hosts.Path, "glob", lambda path, pattern: ["accel0"])
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert method() == detected
    assert detected in {None, "deactivate", *(kind.name for kind in ClusterEnv._cluster_types)}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        *[({name: ""}, f"{name}=, ") for name in list(JAX)[:2]],
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID=: must be"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: must be host:port of process 0"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1: must be"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0, "),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host, "),
    ],
)
def test_a_wrong_environment_is_refused_by_name(changes, shown):
    with pytest.raises(ConfigError, match=shown):
        find(JAX | changes)


class Job:
    """Processes that train one run, each with so many devices; to one its disk is full."""

    def __init__(self, folder, arguments, processes=2, devices=1, compiled=None, each=(), full=-1):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={devices}"
        environ = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"}
        environ |= {"LLM_JAX_HEARTBEAT_SECONDS": str(HEARTBEAT)}
        if compiled:
            environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        command = [sys.executable, "launch.py", "train", f"--workdir={folder}", "--json"]
        self.processes = []
        for i in range(processes):
            where = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_PROCESS_ID": str(i)}
            where |= {"JAX_NUM_PROCESSES": str(processes)}
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
            self.processes.append(
                subprocess.Popen(
                    [*command, *arguments, "--stopped_code=75", *(each[i] if each else ())],
                    cwd=ROOT, env=environ | where,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    preexec_fn=limit if i == full else None,
                )
            )  # fmt: skip

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def wait(self, timeout=400) -> tuple[list[int], list[str], list[str]]:
        """Returns exit codes, last lines of stdout, and stderr."""
        try:
            found = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        lines = [[line for line in out.splitlines() if line[:1] == "{"] for out, _ in found]
        return codes, [line[-1] if line else "" for line in lines], [err for _, err in found]


def untimed(folder) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in read(folder)]


def arrays(folder) -> dict:
    """What the newest checkpoint's arrays are, down to a sum of their bits."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    text = json.loads((newest / "meta" / "metadata").read_text())["json"]
    return json.loads(text)["arrays"]


STEPS = 300


@pytest.fixture(scope="module")
def arguments(tiny, overrides, tmp_path_factory):
    """Of a run on stored tokens in two shards, of which each of two processes reads one."""
    pytest.importorskip("tensorflow_datasets")
    folder = str(tmp_path_factory.mktemp("sets"))
    config = tiny()
    prepare("stored", config, folder=folder, tokens=True)
    changes = {"train.steps": STEPS, "train.log_every": 10, "checkpoint.every": 50}
    changes |= {"eval.every": STEPS, "data.shards": 2}
    changes |= {"data.train": "tfds:stored", "data.tfds_dir": folder}
    return [f"--config.{o}" for o in overrides(changes)] + ["--config.sample.prompts=('a',)"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs of jobs that are killed, which may leave half of one behind."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory, compiled):
    """The folder of the run of one process with two devices."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    codes, _, errors = Job(folder, arguments, 1, 2, compiled).wait()
    assert codes == [0], errors
    return folder


def reach(job, folder, step):
    while job.running() and not any(row["step"] >= step for row in read(folder)):
        time.sleep(0.05)
    assert job.running(), job.wait()


@pytest.mark.slow
def test_told_to_stop_and_resumed_by_another_number_of_processes(
    arguments, whole, tmp_path, compiled
):
    folder = tmp_path / "run"
    saved = 0
    for told, least in ((1, 60), (0, 120)):
        job = Job(folder, arguments, 2, 1, compiled)
        reach(job, folder, max(least, saved + 1))
        job.processes[told].send_signal(signal.SIGTERM)
        codes, lines, errors = job.wait()
        assert codes == [75, 75], errors
        stopped = [json.loads(line)["step"] for line in lines]
        assert saved < stopped[0] == stopped[1] < STEPS
        assert f"resuming from step {saved}" in errors[0] or not saved
        saved = stopped[0]
        assert f"SIGTERM: saving and stopping at step {saved}" in errors[0]
        assert (folder / "checkpoints" / str(saved)).is_dir()

    codes, _, errors = Job(folder, arguments, 1, 2, compiled).wait()
    assert codes == [0] and f"resuming from step {saved}" in errors[0]
    assert untimed(folder) == untimed(whole)  # bit for bit, each step once
    assert arrays(folder) == arrays(whole)
    assert (folder / "samples.txt").read_text() == (whole / "samples.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_while_it_saves(arguments, whole, tmp_path, victim, compiled):
    folder = tmp_path / "run"
    job = Job(folder, arguments, 2, 1, compiled)
    reach(job, folder, 60)
    while job.running() and not list(folder.glob("checkpoints/*tmp*")):
        time.sleep(0.001)
    job.processes[victim].kill()
    codes, _, errors = job.wait()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == hosts.LOST
    line = f"error: process {victim} of 2 on {HERE} is lost: "
    assert [x for x in errors[1 - victim].splitlines() if x.startswith(line)
            and f"process {1 - victim} of 2 on {HERE} ends too. The same command" in x]  # fmt: skip

    codes, lines, errors = Job(folder, arguments, 2, 1, compiled).wait()
    assert codes == [0, 0] and "resuming from step" in errors[0]
    assert untimed(folder) == untimed(whole)
    assert arrays(folder) == arrays(whole)
    assert "step" not in errors[1]  # one speaks for all
    rows = [row for row in read(folder) if "slowest_input_process" in row]
    assert rows and all(row["slowest_input_process"] in (0, 1) for row in rows)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_a_restart(overrides, tmp_path, compiled):
    folder = tmp_path / "run"
    keys = lambda n: [f"--config.{o}" for o in overrides(
        {"train.steps": n, "eval.every": 99, "optimizer.schedule": "constant"}
    )]  # fmt: skip
    codes, _, errors = Job(folder, keys(8), 2, 1, compiled).wait()
    assert codes == [0, 0], errors
    for file in (folder / "checkpoints" / "8" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    codes, _, errors = Job(folder, keys(12), 2, 1, compiled).wait()
    assert 1 in codes and 0 not in codes
    assert any("checkpoint 8 is damaged" in error for error in errors), errors
    codes, _, errors = Job(folder, keys(12), 2, 1, compiled).wait()
    assert codes == [0, 0] and "resuming from step 4" in errors[0]
    assert [row["step"] for row in read(folder)] == list(range(1, 13))


@pytest.mark.slow
def test_four_processes_that_share_rows(overrides, tmp_path):
    """Tensor parallelism across processes: two of them hold the same rows of a batch."""
    changes = {"train.steps": 6, "checkpoint.every": 6, "eval.every": 99}
    keys = [f"--config.{o}" for o in overrides(changes)]
    jobs = {
        n: Job(tmp_path / str(n), [*keys, "--config.mesh.tensor=2"], n, 4 // n) for n in (1, 4)
    }
    for job in jobs.values():
        codes, _, errors = job.wait()
        assert set(codes) == {0}, errors
    for one, four in zip(untimed(tmp_path / "1"), untimed(tmp_path / "4"), strict=True):
        assert four == pytest.approx(one, rel=1e-5)
    folder = tmp_path / "4" / "checkpoints"
    assert [p.name for p in folder.iterdir()] and not list(folder.glob("*tmp*"))


@pytest.mark.slow
def test_what_processes_disagree_on_is_named(overrides, tmp_path):
    keys = [f"--config.{o}" for o in overrides()]
    each = [["--config.seed=0"], ["--config.seed=1"]]
    codes, _, errors = Job(tmp_path / "run", keys, 2, 1, each=each).wait()
    assert codes == [2, 2]
    line = f"process 1 on {HERE} differs from process 0 on {HERE} (seed: 1 there, 0 here)"
    assert all(line in error for error in errors), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_of_one_ends_all_at_once(overrides, tmp_path):
    """Not after the 20 minutes for which Orbax would have them wait for one another."""
    changes = {"train.steps": 4000, "checkpoint.every": 5, "eval.every": 9999}
    keys = [f"--config.{o}" for o in overrides(changes | {"mesh.data": 1, "mesh.fsdp": 2})]
    codes, _, errors = Job(tmp_path / "run", keys, full=1).wait(300)
    assert codes == [1, 1]
    line = f"--workdir={tmp_path / 'run'}: the disk is full at step"
    assert f"error: process 1 of 2 on {HERE}: {line}" in errors[1]
    assert f"error: process 1 of 2 on {HERE} has ended: {line}" in errors[0]


@pytest.mark.slow
def test_one_that_fails_alone_ends_all_with_its_code_and_word(overrides, tmp_path):
    keys = [f"--config.{o}" for o in overrides()]
    each = [[], ["--config.data.train=none.txt"]]
    codes, _, errors = Job(tmp_path / "run", keys, 2, 1, each=each).wait()
    assert codes == [2, 2]
    line = f"error: process 1 of 2 on {HERE} has ended: data: 'none.txt' matches no file"
    assert line in errors[0] and f"error: process 1 of 2 on {HERE}: data: 'none.txt'" in errors[1]


WORK = """
import sys, time
from pathlib import Path
from llm_jax.pod import hosts
job = hosts.start()
with hosts.together(job, sys.argv[1]):
    Path(sys.argv[1], f"{job.index}").touch()
    if job.index == int(sys.argv[2]):
        raise MemoryError("no room")
    while not Path(sys.argv[1], "over").exists():
        time.sleep(0.1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "victim"), [("killed", 0), ("killed", 1), ("failed", 0), ("failed", 1), ("over", -1)]
)
def test_the_others_are_told_who_was_lost(how, victim, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environ = os.environ | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    environ |= {"JAX_NUM_PROCESSES": "3", "LLM_JAX_HEARTBEAT_SECONDS": "10"}
    failing = victim if how == "failed" else -1
    command = [sys.executable, "-c", WORK, str(tmp_path), str(failing)]
    job = [subprocess.Popen(command, env=environ | {"JAX_PROCESS_ID": str(i)}, cwd=ROOT, text=True,
                            stderr=subprocess.PIPE) for i in range(3)]  # fmt: skip
    running = lambda: all(process.poll() is None for process in job)
    while running() and not all((tmp_path / f"{i}").exists() for i in range(3)):
        time.sleep(0.05)
    if how == "killed":
        job[victim].kill()
    elif how == "over":
        (tmp_path / "over").touch()
    errors = [process.communicate(timeout=100)[1] for process in job]
    codes = [process.returncode for process in job]
    if how == "over":
        assert codes == [0, 0, 0] and not any("error: " in text for text in errors)
        return
    why = "is lost: it died" if how == "killed" else "has ended: no room"
    for i in {0, 1, 2} - {victim}:
        line = f"error: process {victim} of 3 on {HERE} {why}"
        found = [x for x in errors[i].splitlines() if x.startswith(line)]
        assert codes[i] == hosts.LOST and len(found) == 1, errors[i]
        assert f"process {i} of 3 on {HERE} ends too. The same command resumes." in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_one_that_is_missing_at_the_start(present, tmp_path, monkeypatch):
    for name, value in JAX.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:39471")
    monkeypatch.setenv("JAX_PROCESS_ID", str(present))
    monkeypatch.setenv("LLM_JAX_START_SECONDS", "3")
    command = [sys.executable, "launch.py", "train", f"--workdir={tmp_path}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    why = "process 0, at localhost:39471, does not answer" if present else "another has not started"
    assert found.returncode == hosts.LOST
    assert f"process {present} of 4 on {HERE}: waited 3 s" in found.stderr and why in found.stderr


class Store:
    """JAX's key-value store, of threads in the place of processes."""

    def __init__(self, count):
        self.num_processes, self.here, self.values = count, threading.local(), {}
        self.client, self.changed = self, threading.Condition()

    process_id = property(lambda self: self.here.index)

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout):
        with self.changed:
            self.changed.wait_for(lambda: key in self.values)
            return self.values[key]

    def run(self, *calls) -> list[str]:
        """What each process is refused for, or nothing."""

        def one(index):
            self.here.index = index
            try:
                calls[index]()
            except ConfigError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, range(len(calls))))


@pytest.fixture
def three(monkeypatch):
    """Three processes, which meet once."""
    store = Store(3)
    monkeypatch.setattr(processes.distributed, "global_state", store)
    monkeypatch.setattr(processes, "_ROUND", itertools.repeat(0))
    monkeypatch.setattr(processes, "SEEN_SECONDS", 0)
    return store


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, ""),
        ({"seed": 3}, f"process 2 on {HERE} differs from process 0 on {HERE} (seed: 3 there, 0"),
        ({"code of a.py": "f"}, "(code of a.py: 'f' there, 'e' here)"),
        ({"jax": None}, "(jax: None there, '0.10' here)"),
        ({"libtpu": "1"}, "(libtpu: '1' there, absent here)"),
        ({str(i): i for i in range(9)}, "4: 4 there, absent here and 4 more)"),
    ],
)
def test_facts_that_differ_are_named_in_all_processes(change, shown, three):
    facts = {"seed": 0, "code of a.py": "e", "jax": "0.10"}
    found = three.run(*[lambda: processes.agree(facts)] * 2,
                      lambda: processes.agree(facts | change))  # fmt: skip
    assert found[0] == found[1] == found[2] and (shown in found[0] if shown else not found[0])


@pytest.mark.parametrize("name", ["", "run", "a/b/run"])
def test_a_folder_is_shared(name, three, tmp_path):
    assert three.run(*[lambda: processes.share(tmp_path / name)] * 3) == ["", "", ""]
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("other", "shown"),
    [("other", f"process 1 on {HERE} has a different folder of that name than process 0 on {HERE}"),
     ("/proc", f"process 1 on {HERE} cannot write to it (No such file or directory)")],
)  # fmt: skip
def test_a_folder_that_is_not_shared_or_not_writable_is_refused(other, shown, three, tmp_path):
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    folders = tmp_path / "run", tmp_path / other, tmp_path / "run"
    found = three.run(*[lambda f=folder: processes.share(f) for folder in folders])
    assert all(shown in text for text in found), found
    assert [*tmp_path.rglob("*")] == [tmp_path / "other", tmp_path / "run"]


def test_the_code_of_every_module_counts(monkeypatch, tmp_path):
    facts = hosts.code()
    for fact in ("code of train/loop.py", "code of config.py", "jax", "python", "XLA_FLAGS"):
        assert facts[fact]
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "pod" / "hosts.py"))
    (tmp_path / "a.py").write_text("a = 1")
    before = hosts.code()["code of a.py"]
    (tmp_path / "a.py").write_text("a = 2")
    assert hosts.code()["code of a.py"] != before


def test_alone_there_is_nothing_to_agree_on(tmp_path):
    processes.agree({"a": 1})
    processes.share("/proc/none")
    with hosts.together(None, tmp_path):
        pass


WATCHED = """
import time, types
from llm_jax.pod import watchdog
watchdog.TOLD = 0.2
with watchdog.watchdog(1, "process 1 of 2 on a") as (step,):
    time.sleep(0.7)
    step(types.SimpleNamespace(step=7))
    started = time.monotonic()
    {}
print("over")
"""


@pytest.mark.parametrize(
    ("then", "code"), [("time.sleep(9)", 1), ("", 0), ("sum(range(10**11))", 1)]
)
def test_a_run_that_stands_still_ends_with_its_stacks(then, code):
    """Also while one call in C holds Python's lock."""
    found = subprocess.run(
        [sys.executable, "-c", WATCHED.format(then)], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == code and ("over" in found.stdout) == (code == 0)
    assert "process 1 of 2 on a: no step for 0.2 s; it is outside this package" in found.stderr
    assert ("most recent call first" in found.stderr) == (code == 1)
    if then.startswith("time"):
        assert "no step for 0.2 s after step 7" in found.stderr


def test_where_a_process_is(monkeypatch):
    files = [Path(processes.__file__), Path(__file__)]
    monkeypatch.setattr(watchdog, "ROOT", files[1].parents[1])
    assert re.fullmatch(r"in test_where_a_process_is, pod/test_hosts.py:\d+", watchdog.where())
    monkeypatch.setattr(watchdog, "ROOT", files[0].parent)
    assert watchdog.where() == "outside this package"

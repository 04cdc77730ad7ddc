"""A training run as an ordinary job of Slurm, GKE or TPU VMs: its file, and the command for it.

Nothing here schedules anything: the file is what its author would have written by hand, and the
job starts again as these systems do. What a job knows of `launch.py train` are its exit codes:
0 finished, STOPPED saved when it was told to stop, 2 a config that no restart will mend; all else
is a crash, after which the same command resumes.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from llm_jax.config import ConfigError

STOPPED = 75  # EX_TEMPFAIL
GRACE = 300  # seconds from the signal to the end, in which a checkpoint is written


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation: GKE's label, a TPU VM's prefix and runtime, axes, cores a chip."""

    label: str
    prefix: str
    runtime: str
    axes: int
    cores: int = 1


CHIPS = {
    "v4": Chip("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 3, 2),
    "v5p": Chip("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 3, 2),
    "v5e": Chip("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite", 2),
    "v6e": Chip("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e", 2),
}
CHIPS_A_HOST = 4

# What each system takes: {option: default}; None: has to be given.
OPTIONS = {
    "slurm": {
        "nodes": 1, "gpus": 0, "time": "24:00:00", "partition": "", "account": "", "setup": "",
        "retries": 10,
    },
    "gke": {"topology": None, "slices": 1, "image": None, "claim": None, "retries": 10},
    "tpu-vm": {
        "topology": None, "slices": 1, "zone": None, "project": "", "repository": None,
        "bucket": "", "spot": False, "setup": "", "retries": 10,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A job: its file's name and text, the command that hands it in, and its devices.

    devices: how many, where that is known.
    """

    file: str
    text: str
    command: list[str]
    devices: int | None = None


def make(on: str, name: str, train: list[str], options: dict, here: str | Path = ".") -> Job:
    """Returns the job that trains.

    Args:
      on: a key of OPTIONS.
      train: what follows `python launch.py`.
      options: those that were given, of OPTIONS[on].
      here: the folder of launch.py, which Slurm's machines share.

    Raises:
      ConfigError: an option that is missing, does not belong here or cannot be.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ConfigError(f"--name={name}: must be lower-case letters, digits and dashes")
    known = OPTIONS[on]
    for option in options:
        if option not in known:
            raise ConfigError(f"--{option}: is not for --on={on}, which takes {_list(known)}")
    missing = [o for o, default in known.items() if default is None and not options.get(o)]
    if missing:
        raise ConfigError(f"--{missing[0]}: --on={on} needs it")
    for option, value in options.items():
        if "\n" in str(value) or (isinstance(value, int) and value < 0):
            raise ConfigError(f"--{option}={value!r}: cannot be")
    file = str(Path(here).absolute() / "launch.py") if on == "slurm" else "launch.py"
    command = ["python", file, *train, f"--stopped_code={STOPPED}"]
    how: Callable[..., Job] = {"slurm": slurm, "gke": gke, "tpu-vm": tpu_vm}[on]
    return how(name, command, **known | options)


def _list(options) -> str:
    return ", ".join(f"--{option}" for option in options)


def slurm(
    name, command, *, nodes, gpus, time, partition, account, setup, retries
) -> Job:
    """A batch script: one task a node, put back in the queue when stopped or crashed."""
    if nodes < 1:
        raise ConfigError(f"--nodes={nodes}: must be at least 1")
    settings = {
        "job-name": name, "nodes": nodes, "ntasks-per-node": 1, "gpus-per-node": gpus,
        "time": time, "partition": partition, "account": account,
        "output": f"{name}-%j.log", "open-mode": "append", "signal": f"B:TERM@{GRACE}",
    }  # fmt: skip
    header = [f"#SBATCH --{key}={value}" for key, value in settings.items() if value]
    text = f"""#!/bin/bash
{chr(10).join(header)}
#SBATCH --requeue

cd {shlex.quote(str(Path.cwd()))}
{setup + chr(10) if setup else ""}
# {GRACE} s before the time is up Slurm tells this shell, which tells every task.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun --kill-on-bad-exit=1 {shlex.join(command)} &
task=$!
wait $task
code=$?
while kill -0 $task 2> /dev/null; do  # the signal ended the wait, not the run
    wait $task
    code=$?
done

# {STOPPED}: it has saved and has more to do. 2: a config that no restart will mend.
if [ $code = {STOPPED} ] || {{ [ $code != 0 ] && [ $code != 2 ] &&
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; }}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""
    file = f"{name}.sbatch"
    return Job(file, text, ["sbatch", file], nodes * gpus or None)


def _topology(text: str, slices: int) -> tuple[Chip, str, int]:
    """(chip, 4x4x4, chips) of 'v5p:4x4x4', of which there are `slices`."""
    if slices < 1:
        raise ConfigError(f"--slices={slices}: must be at least 1")
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ConfigError(
            f"--topology={text}: must be like v5p:4x4x4 (64 chips) or v6e:8x8; known are "
            f"{', '.join(CHIPS)}"
        )
    chip, sizes = CHIPS[kind], [int(n) for n in shape.split("x")]
    count = math.prod(sizes)
    if len(sizes) != chip.axes or count % CHIPS_A_HOST:
        raise ConfigError(
            f"--topology={text}: {kind} has {chip.axes} axes, whose product is a multiple of "
            f"the {CHIPS_A_HOST} chips of a host"
        )
    return chip, shape, count


def gke(name, command, *, topology, slices, image, claim, retries) -> Job:
    """A JobSet of a job a slice: all pods start again when one of them ends badly."""
    import yaml

    chip, shape, count = _topology(topology, slices)
    hosts = count // CHIPS_A_HOST
    container = {
        "name": "train",
        "image": image,
        "command": command,
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        "resources": {"limits": {"google.com/tpu": CHIPS_A_HOST}},
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": chip.label,
            "cloud.google.com/gke-tpu-topology": shape,
        },
        "containers": [container],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}],
    }
    mistaken = {"containerName": "train", "operator": "In", "values": [2]}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": mistaken}]},
        "template": {"spec": pod},
    }
    end = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": retries, "rules": [end]},
            "replicatedJobs": [{"name": "slice", "replicas": slices, "template": {"spec": job}}],
        },
    }
    file = f"{name}.yaml"
    text = yaml.safe_dump(manifest, sort_keys=False, width=100)
    return Job(file, text, ["kubectl", "apply", "-f", file], slices * count)


def tpu_vm(
    name, command, *, topology, slices, zone, project, repository, bucket, spot, setup, retries
) -> Job:
    """A queued resource whose hosts install, mount the bucket and train when they boot."""
    chip, _, count = _topology(topology, slices)
    mount = f"""
if ! command -v gcsfuse; then
    release=gcsfuse-$(lsb_release -c -s)
    echo "deb https://packages.cloud.google.com/apt $release main" \\
        > /etc/apt/sources.list.d/gcsfuse.list
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | apt-key add -
    apt-get update && apt-get install -y gcsfuse
fi
mkdir -p /runs
mountpoint -q /runs || gcsfuse --implicit-dirs {shlex.quote(bucket)} /runs
""" * bool(bucket)
    text = f"""#!/bin/bash
# Runs as root on every host, each time that it boots.
set -e
export HOME=/root
{mount}
if [ ! -e /opt/ready ]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
    git clone --depth=1 {shlex.quote(repository)} /opt/llm_jax
    /root/.local/bin/uv venv --python 3.12 /opt/env
    /root/.local/bin/uv pip install --python /opt/env/bin/python \\
        -r /opt/llm_jax/requirements.txt 'jax[tpu]'
    touch /opt/ready
fi
cd /opt/llm_jax
export PATH=/opt/env/bin:$PATH
{setup}
# {STOPPED}: it has saved, as this host was told to stop. 2: a config that no restart will mend.
for attempt in $(seq 0 {retries}); do
    code=0
    {shlex.join(command)} || code=$?
    case $code in 0|2|{STOPPED}) break ;; esac
    sleep 10  # a crash ends the others too
done
exit $code
"""
    file = f"{name}.sh"
    gcloud = ["gcloud", "compute", "tpus", "queued-resources", "create", name]
    several = [f"--node-prefix={name}", f"--node-count={slices}"]
    gcloud += several if slices > 1 else [f"--node-id={name}"]
    gcloud += [f"--zone={zone}", *[f"--project={project}"] * bool(project)]
    gcloud += [f"--accelerator-type={chip.prefix}-{count * chip.cores}"]
    gcloud += [f"--runtime-version={chip.runtime}", *["--spot"] * spot]
    gcloud += [f"--metadata-from-file=startup-script={file}"]
    return Job(file, text, gcloud, slices * count)


def write(job: Job, where: str | Path = ".") -> Path:
    """Writes the job's file into a folder; returns its path."""
    path = Path(where) / job.file
    path.write_text(job.text)
    return path

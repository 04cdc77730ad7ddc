"""A training run as an ordinary job of Slurm, GKE or TPU VMs: its file, and the command for it.

Nothing here schedules anything: jobs/ holds what its author would have written by hand, with
{{gaps}}, and the job starts again as these systems do. What a job knows of `launch.py train` are
its exit codes: 0 finished, STOPPED saved when it was told to stop, 2 a config that no restart will
mend; all else is a crash, after which the same command resumes.
"""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.config import ConfigError

STOPPED = 75  # EX_TEMPFAIL
GRACE = 300  # seconds from the signal to the end, in which a checkpoint is written
FILES = {"slurm": "slurm.sbatch", "gke": "gke.yaml", "tpu-vm": "tpu-vm.sh"}


class Chip(NamedTuple):
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


class Option(NamedTuple):
    """An option of a job; default None: it is required."""

    systems: tuple[str, ...]
    default: Any
    help: str


TPU = ("gke", "tpu-vm")
OPTIONS = {
    "nodes": Option(("slurm",), 1, "machines, one process each"),
    "gpus": Option(("slurm",), 0, "GPUs of a machine"),
    "time": Option(("slurm",), "24:00:00", "limit of one job, after which it is queued again"),
    "partition": Option(("slurm",), "", ""),
    "account": Option(("slurm",), "", ""),
    "topology": Option(TPU, None, "v5p:4x4x4"),
    "slices": Option(TPU, 1, "so many of it, joined by DCN"),
    "image": Option(("gke",), None, "a container image with this repository as its folder"),
    "claim": Option(("gke",), None, "a PersistentVolumeClaim that pods can write, at /runs"),
    "zone": Option(("tpu-vm",), None, ""),
    "project": Option(("tpu-vm",), "", "gcloud's own if not given"),
    "repository": Option(("tpu-vm",), None, "a git address of this repository"),
    "bucket": Option(("tpu-vm",), "", "a Cloud Storage bucket, mounted at /runs"),
    "spot": Option(("tpu-vm",), False, "chips that may be taken away"),
    "setup": Option(("slurm", "tpu-vm"), "", "a shell line run first, to activate Python, say"),
    "retries": Option(tuple(FILES), 10, "restarts after crashes"),
}


class Job(NamedTuple):
    """A job: its file's name and text, the command that hands it in, and its devices if known."""

    file: str
    text: str
    command: list[str]
    devices: int | None = None


def make(on: str, name: str, train: list[str], options: dict, here: Path | None) -> Job:
    """Returns a job that runs `launch.py train`.

    Args:
      on: slurm, gke or tpu-vm.
      train: what follows `python launch.py`.
      options: those of OPTIONS that were given.
      here: the folder of launch.py, which Slurm's machines share; None: llm-jax is installed.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ConfigError(f"--name={name}: must be lower-case letters, digits and dashes")
    o = _checked(on, options)
    launch = ["python", "launch.py"]
    if on == "slurm":
        launch = ["python", str(here / "launch.py")] if here else ["llm-jax"]
    command = [*launch, *train, f"--stopped_code={STOPPED}"]
    file = name + Path(FILES[on]).suffix
    gaps = o | {"name": name, "grace": GRACE, "stopped": STOPPED, "folder": str(Path.cwd())}
    gaps |= {"command": command, "chips_a_host": CHIPS_A_HOST}
    if on == "slurm":
        return Job(file, _filled(on, gaps), ["sbatch", file], o["nodes"] * o["gpus"] or None)
    chip, shape, count = _topology(o["topology"])
    gaps |= {"hosts": count // CHIPS_A_HOST, "label": chip.label, "shape": shape}
    hand_in = ["kubectl", "apply", "-f", file]
    if on == "tpu-vm":
        several = [f"--node-prefix={name}", f"--node-count={o['slices']}"]
        hand_in = ["gcloud", "compute", "tpus", "queued-resources", "create", name]
        hand_in += several if o["slices"] > 1 else [f"--node-id={name}"]
        hand_in += [f"--zone={o['zone']}", *[f"--project={o['project']}"] * bool(o["project"])]
        hand_in += [f"--accelerator-type={chip.prefix}-{count * chip.cores}"]
        hand_in += [f"--runtime-version={chip.runtime}", *["--spot"] * o["spot"]]
        hand_in += [f"--metadata-from-file=startup-script={file}"]
    return Job(file, _filled(on, gaps), hand_in, o["slices"] * count)


def _checked(on: str, given: dict) -> dict[str, Any]:
    """The options of this system: the given values over the defaults."""
    known = {name: option.default for name, option in OPTIONS.items() if on in option.systems}
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(f"--{key}" for key in known)
            raise ConfigError(f"--{name}: is not for --on={on}, which takes {takes}")
        if "\n" in str(value) or (isinstance(value, int) and value < 0):
            raise ConfigError(f"--{name}={value!r}: cannot be")
        if name in ("nodes", "slices") and value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1")
    if missing := [n for n, default in known.items() if default is None and not given.get(n)]:
        raise ConfigError(f"--{missing[0]}: --on={on} needs it")
    return known | given


def _filled(on: str, gaps: dict[str, Any]) -> str:
    """The file of jobs/ with its gaps filled; Slurm's settings without a value are left out.

    A gap is {{name}}, {{name|sh}} (quoted for a shell) or {{name|json}}.
    """
    shell = lambda x: shlex.quote(x) if isinstance(x, str) else shlex.join(x)
    forms = {None: str, "sh": shell, "json": json.dumps}
    fill = lambda match: forms[match[2]](gaps[match[1]])
    lines = []
    for line in (Path(__file__).parent / "jobs" / FILES[on]).read_text("utf-8").splitlines():
        names = re.findall(r"\{\{(\w+)", line)
        if not line.startswith("#SBATCH") or all(gaps[name] for name in names):
            lines.append(re.sub(r"\{\{(\w+)(?:\|(\w+))?\}\}", fill, line))
    return "\n".join(lines) + "\n"


def _topology(text: str) -> tuple[Chip, str, int]:
    """(chip, 4x4x4, chips) of 'v5p:4x4x4'."""
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ConfigError(f"--topology={text}: must be like v5p:4x4x4 (64 chips) or v6e:8x8; known "
                          f"are {', '.join(CHIPS)}")
    chip, sizes = CHIPS[kind], [int(n) for n in shape.split("x")]
    count = math.prod(sizes)
    if len(sizes) != chip.axes or count % CHIPS_A_HOST or not count:
        raise ConfigError(f"--topology={text}: {kind} has {chip.axes} axes, whose product is a "
                          f"multiple of the {CHIPS_A_HOST} chips of a host")
    return chip, shape, count

"""A training run as an ordinary job of Slurm, GKE or TPU VMs: its file, and the command for it.

Nothing here schedules anything: jobs/ holds what its author would have written by hand, with
{{gaps}}, and the job starts again as these systems do. What a job knows of `launch.py train` are
its exit codes: 0 finished, STOPPED saved when it was told to stop, 2 a config that no restart will
mend; all else is a crash, after which the same command resumes.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax import record
from llm_jax.config import ConfigError
from llm_jax.pod import slices

STOPPED = 75  # EX_TEMPFAIL
GRACE = 300  # seconds from the signal to the end, in which a checkpoint is written
FILES = {"slurm": "slurm.sbatch", "gke": "gke.yaml", "tpu-vm": "tpu-vm.sh"}


class Option(NamedTuple):
    """An option of a job; default None: it is required."""

    systems: tuple[str, ...]
    default: Any
    help: str


TPU = ("gke", "tpu-vm")
OPTIONS = {
    "nodes": Option(("slurm",), 1, "machines, one process each"),
    "gpus": Option(("slurm",), 0, "GPUs of a machine"),
    "cpus": Option(("slurm",), 0, "CPUs of a machine; 0: all, and the machine for the job alone"),
    "memory": Option(("slurm",), "", "of a machine, as 64G; with all of its CPUs all of it"),
    "time": Option(("slurm",), "24:00:00", "limit of one job, after which it is queued again"),
    "partition": Option(("slurm",), "", ""),
    "account": Option(("slurm",), "", ""),
    "sbatch": Option(("slurm",), (), "a further option of sbatch, as --sbatch=--qos=high; repeat"),
    "topology": Option(TPU, None, "v5p:4x4x4"),
    "slices": Option(TPU, 1, "so many of it, joined by DCN"),
    "image": Option(("gke",), None, "a container image with this repository as its folder"),
    "claim": Option(("gke",), "", "a PersistentVolumeClaim that pods can write, at /runs"),
    "service_account": Option(("gke",), "", "Kubernetes' own, that may use the bucket"),
    "queue": Option(("gke",), "", "a LocalQueue of Kueue"),
    "zone": Option(("tpu-vm",), None, ""),
    "project": Option(("tpu-vm",), "", "gcloud's own if not given"),
    "repository": Option(("tpu-vm",), None, "a git address of this repository"),
    "commit": Option(("tpu-vm",), "", "of it; that of this checkout if not given"),
    "bucket": Option(TPU, "", "a Cloud Storage bucket, mounted by gcsfuse at /runs"),
    "spot": Option(TPU, False, "chips that may be taken away"),
    "setup": Option(("slurm", "tpu-vm"), "", "a shell line run first, to activate Python, say"),
    "retries": Option(tuple(FILES), 10, "restarts after crashes; of slurm and tpu-vm, since the "
                      "last checkpoint"),
    "stall": Option(tuple(FILES), 3600, "seconds without a step that count as a crash; 0: none do"),
}  # fmt: skip


class Job(NamedTuple):
    """A job: its file's name and text, the command that hands it in, and its devices if known."""

    file: str
    text: str
    command: list[str]
    devices: int | None = None


def make(
    on: str, name: str, workdir: str, train: list[str], options: dict, here: Path | None
) -> Job:
    """Returns a job that runs `launch.py train`.

    Args:
      on: slurm, gke or tpu-vm.
      train: the other arguments of `train`.
      options: those of OPTIONS that were given.
      here: the folder of launch.py, which Slurm's machines share; None: llm-jax is installed.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ConfigError(f"--name={name}: must be lower-case letters, digits and dashes")
    o = _checked(on, options)
    launch = ["python", "launch.py"]
    if on == "slurm":
        launch = ["python", str(here / "launch.py")] if here else ["llm-jax"]
    command = [*launch, "train", f"--workdir={workdir}", *train]
    command += [f"--stopped_code={STOPPED}", f"--stall_seconds={o['stall']}"]
    file = name + Path(FILES[on]).suffix
    gaps = o | {"name": name, "grace": GRACE, "stopped": STOPPED, "folder": str(Path.cwd())}
    gaps |= {"command": command, "checkpoints": f"{workdir}/checkpoints"}
    if on == "slurm":
        gaps["exclusive"] = "" if o["cpus"] else "exclusive"
        gaps["memory"] = o["memory"] or ("" if o["cpus"] else "0")
        gaps["sbatch"] = "\n#SBATCH ".join(o["sbatch"])
        return Job(file, _filled(on, gaps), ["sbatch", file], o["nodes"] * o["gpus"] or None)
    if (on == "gke" or o["bucket"]) and not workdir.startswith("/runs/"):
        raise ConfigError(f"--workdir={workdir}: must be below /runs, where the storage is mounted "
                          "that all hosts share")
    tpu, shape, hosts, chips = slices.find(o["topology"])
    gaps |= {"hosts": hosts, "label": tpu.label, "shape": shape, "chips": chips}
    gaps["spot"] = "true" if o["spot"] else ""
    if on == "gke":
        if bool(o["claim"]) == bool(o["bucket"]):
            raise ConfigError("--claim, --bucket: --on=gke needs one of them, to be /runs")
        return Job(file, _filled(on, gaps), ["kubectl", "apply", "-f", file],
                   o["slices"] * hosts * chips)  # fmt: skip
    if not tpu.runtime:
        raise ConfigError(f"--topology={o['topology']}: has no TPU VMs; --on=gke has it")
    gaps["commit"] = o["commit"] or _commit()
    several = [f"--node-prefix={name}", f"--node-count={o['slices']}"]
    hand_in = ["gcloud", "compute", "tpus", "queued-resources", "create", name]
    hand_in += several if o["slices"] > 1 else [f"--node-id={name}"]
    hand_in += [f"--zone={o['zone']}", *[f"--project={o['project']}"] * bool(o["project"])]
    # A number of cores means but one of the shapes that have as many, where there are three axes.
    flat = f"--accelerator-type={tpu.prefix}-{hosts * chips}"
    hand_in += [f"--type={tpu.prefix}", f"--topology={shape}"] if tpu.cubes else [flat]
    hand_in += [f"--runtime-version={tpu.runtime}", *["--spot"] * o["spot"]]
    hand_in += [f"--metadata-from-file=startup-script={file}"]
    return Job(file, _filled(on, gaps), hand_in, o["slices"] * hosts * chips)


def _commit() -> str:
    commit = record.commit()
    if not commit or "+" in commit:
        raise ConfigError("--commit: this checkout has changes that are in no commit, which hosts "
                          "could not clone; commit and push them, or name one that is pushed"
                          if commit else "--commit: --on=tpu-vm needs one; this is no checkout")
    return commit


def _checked(on: str, given: dict) -> dict[str, Any]:
    """The options of this system: the given values over the defaults."""
    known = {name: option.default for name, option in OPTIONS.items() if on in option.systems}
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(f"--{key}" for key in known)
            raise ConfigError(f"--{name}: is not for --on={on}, which takes {takes}")
        lines = value if isinstance(value, (list, tuple)) else [value]
        if any("\n" in str(x) for x in lines) or (isinstance(value, int) and value < 0):
            raise ConfigError(f"--{name}={value!r}: cannot be")
        if name == "sbatch" and not all(x.startswith("-") for x in lines):
            raise ConfigError(f"--sbatch={' '.join(lines)}: must be options, as --qos=high")
        if name == "time" and _slurm_seconds(value) <= GRACE + 60:
            raise ConfigError(f"--time={value}: must be more than the {GRACE + 60} s that saving "
                              "is given at its end")
        if name in ("nodes", "slices") and value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1")
    if missing := [n for n, default in known.items() if default is None and not given.get(n)]:
        raise ConfigError(f"--{missing[0]}: --on={on} needs it")
    return known | given


def _slurm_seconds(text: str) -> float:
    """Seconds of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text):
        raise ConfigError(f"--time={text}: must be minutes, hours:minutes:seconds, days-hours, or "
                          "days-hours:minutes:seconds")
    days, dash, rest = text.rpartition("-")
    parts = [int(n) for n in rest.split(":")]
    parts = [0] * (len(parts) < 3 and not dash) + parts  # without days the first are minutes
    hours, minutes, seconds = (parts + [0, 0])[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _filled(on: str, gaps: dict[str, Any]) -> str:
    """The file of jobs/ with its gaps filled.

    A gap is {{name}}, {{name|sh}} (quoted for a shell) or {{name|json}}; a line with a {{?name}} is
    left out where that is empty.
    """
    shell = lambda x: shlex.quote(x) if isinstance(x, str) else shlex.join(x)
    forms = {None: str, "sh": shell, "json": json.dumps}
    fill = lambda match: forms[match[2]](gaps[match[1]])
    lines = []
    for line in (Path(__file__).parent / "jobs" / FILES[on]).read_text("utf-8").splitlines():
        if all(gaps[name] for name in re.findall(r"\{\{\?(\w+)", line)):
            lines.append(re.sub(r"\{\{\??(\w+)(?:\|(\w+))?\}\}", fill, line))
    return "\n".join(lines) + "\n"

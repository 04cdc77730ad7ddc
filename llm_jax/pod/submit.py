"""Job files for training on Slurm, GKE or TPU VMs, and the commands that submit them.

Scheduling and restarts are left to these systems: jobs/ holds templates of ordinary job files with
{{gaps}}. A job depends only on the exit codes of `launch.py train`: 0 finished, STOPPED saved after
a stop signal, 2 a config error, for which a restart is useless; others are crashes, after which the
same command resumes.
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
GRACE = 300  # seconds between the signal and the end of the job, to write a checkpoint
FILES = {"slurm": "slurm.sbatch", "gke": "gke.yaml", "tpu-vm": "tpu-vm.sh"}


class Option(NamedTuple):
    """A job option; default None: required."""

    systems: tuple[str, ...]
    default: Any
    help: str


TPU = ("gke", "tpu-vm")
OPTIONS = {
    "nodes": Option(("slurm",), 1, "number of machines, with one process each"),
    "gpus": Option(("slurm",), 0, "GPUs per machine"),
    "cpus": Option(("slurm",), 0, "CPUs per machine; 0: all, with exclusive use"),
    "memory": Option(("slurm",), "", "memory per machine, as 64G; all if it uses all CPUs"),
    "time": Option(("slurm",), "24:00:00", "time limit of a job, after which it is queued again"),
    "partition": Option(("slurm",), "", ""),
    "account": Option(("slurm",), "", ""),
    "sbatch": Option(("slurm",), (), "a further sbatch option, as --sbatch=--qos=high; repeatable"),
    "topology": Option(TPU, None, "v5p:4x4x4"),
    "slices": Option(TPU, 1, "number of slices, connected by DCN"),
    "image": Option(("gke",), None, "a container image with this repository as working directory"),
    "claim": Option(("gke",), "", "a PersistentVolumeClaim, writable by pods, mounted at /runs"),
    "service_account": Option(("gke",), "", "a Kubernetes account with access to the bucket"),
    "queue": Option(("gke",), "", "a Kueue LocalQueue"),
    "zone": Option(("tpu-vm",), None, ""),
    "project": Option(("tpu-vm",), "", "default: that of gcloud"),
    "repository": Option(("tpu-vm",), None, "git URL of this repository"),
    "commit": Option(("tpu-vm",), "", "its commit; default: that of this checkout"),
    "bucket": Option(TPU, "", "a Cloud Storage bucket, mounted by gcsfuse at /runs"),
    "spot": Option(TPU, False, "use preemptible chips"),
    "setup": Option(("slurm", "tpu-vm"), "", "a shell command run first, to activate Python, say"),
    "retries": Option(tuple(FILES), 10, "restarts after crashes; slurm, tpu-vm: since the "
                      "last checkpoint"),
    "stall": Option(tuple(FILES), 3600, "seconds without a step that count as a crash; 0: off"),
}  # fmt: skip


class Job(NamedTuple):
    """A job: name and text of its file, the command that submits it, its devices if known."""

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
      train: further arguments of `train`.
      options: values of OPTIONS.
      here: folder of launch.py, shared by Slurm's machines; None: llm-jax is installed.
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
        raise ConfigError(f"--workdir={workdir}: must be below /runs, the mount point of the "
                          "shared storage")
    tpu, shape, hosts, chips = slices.find(o["topology"])
    gaps |= {"hosts": hosts, "label": tpu.label, "shape": shape, "chips": chips}
    gaps["spot"] = "true" if o["spot"] else ""
    if on == "gke":
        if bool(o["claim"]) == bool(o["bucket"]):
            raise ConfigError("--claim, --bucket: --on=gke needs one of them, to mount at /runs")
        return Job(file, _filled(on, gaps), ["kubectl", "apply", "-f", file],
                   o["slices"] * hosts * chips)  # fmt: skip
    if not tpu.runtime:
        raise ConfigError(f"--topology={o['topology']}: has no TPU VMs; use --on=gke")
    gaps["commit"] = o["commit"] or _commit()
    several = [f"--node-prefix={name}", f"--node-count={o['slices']}"]
    hand_in = ["gcloud", "compute", "tpus", "queued-resources", "create", name]
    hand_in += several if o["slices"] > 1 else [f"--node-id={name}"]
    hand_in += [f"--zone={o['zone']}", *[f"--project={o['project']}"] * bool(o["project"])]
    # With three axes, several shapes have the same number of cores; the type names only one.
    flat = f"--accelerator-type={tpu.prefix}-{hosts * chips}"
    hand_in += [f"--type={tpu.prefix}", f"--topology={shape}"] if tpu.cubes else [flat]
    hand_in += [f"--runtime-version={tpu.runtime}", *["--spot"] * o["spot"]]
    hand_in += [f"--metadata-from-file=startup-script={file}"]
    return Job(file, _filled(on, gaps), hand_in, o["slices"] * hosts * chips)


def _commit() -> str:
    commit = record.commit()
    if not commit or "+" in commit:
        raise ConfigError("--commit: this checkout has uncommitted changes, which hosts cannot "
                          "clone; commit and push them, or name a pushed commit"
                          if commit else "--commit: required by --on=tpu-vm outside a checkout")
    return commit


def _checked(on: str, given: dict) -> dict[str, Any]:
    """Returns the options of this system: the defaults, updated with the given values."""
    known = {name: option.default for name, option in OPTIONS.items() if on in option.systems}
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(f"--{key}" for key in known)
            raise ConfigError(f"--{name}: not an option of --on={on}, which takes {takes}")
        lines = value if isinstance(value, (list, tuple)) else [value]
        if any("\n" in str(x) for x in lines) or (isinstance(value, int) and value < 0):
            raise ConfigError(f"--{name}={value!r}: invalid value")
        if name == "sbatch" and not all(x.startswith("-") for x in lines):
            raise ConfigError(f"--sbatch={' '.join(lines)}: must be options, as --qos=high")
        if name == "time" and _slurm_seconds(value) <= GRACE + 60:
            raise ConfigError(f"--time={value}: must be more than the {GRACE + 60} s reserved for "
                              "saving at its end")
        if name in ("nodes", "slices") and value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1")
    if missing := [n for n, default in known.items() if default is None and not given.get(n)]:
        raise ConfigError(f"--{missing[0]}: --on={on} needs it")
    return known | given


def _slurm_seconds(text: str) -> float:
    """Parses a Slurm time limit to seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text):
        raise ConfigError(f"--time={text}: must be minutes, hours:minutes:seconds, days-hours, or "
                          "days-hours:minutes:seconds")
    days, dash, rest = text.rpartition("-")
    parts = [int(n) for n in rest.split(":")]
    parts = [0] * (len(parts) < 3 and not dash) + parts  # without days the first part is minutes
    hours, minutes, seconds = (parts + [0, 0])[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _filled(on: str, gaps: dict[str, Any]) -> str:
    """Fills in a template of jobs/.

    Gaps are {{name}}, {{name|sh}} (shell-quoted) or {{name|json}}; a line with {{?name}} is dropped
    if that is empty.
    """
    shell = lambda x: shlex.quote(x) if isinstance(x, str) else shlex.join(x)
    forms = {None: str, "sh": shell, "json": json.dumps}
    fill = lambda match: forms[match[2]](gaps[match[1]])
    lines = []
    for line in (Path(__file__).parent / "jobs" / FILES[on]).read_text("utf-8").splitlines():
        if all(gaps[name] for name in re.findall(r"\{\{\?(\w+)", line)):
            lines.append(re.sub(r"\{\{\??(\w+)(?:\|(\w+))?\}\}", fill, line))
    return "\n".join(lines) + "\n"

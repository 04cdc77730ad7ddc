"""`submit`: writes the file of a job that trains and, asked to, hands it in."""

import argparse
import shlex
import subprocess

from llm_jax import config as configs
from llm_jax.commands.verb import ROOT, Verb, config_of
from llm_jax.config import ConfigError

ABOUT = """Writes the job's file into the current folder and prints it with the command that
hands it in; --go runs that command. The job runs `launch.py train` with what is given here, and
starts again where it stopped: docs/pod.md."""

EXAMPLES = """examples:
  {program} submit --on=slurm --nodes=4 --gpus=8 --config=configs/gpt2.py:124m \\
      --workdir=/shared/runs/gpt2 --setup='source env/bin/activate'
  {program} submit --on=gke --topology=v5p:4x4x4 --image=REGISTRY/llm_jax \\
      --claim=runs --config=configs/llama.py:8b --workdir=/runs/llama
  {program} submit --on=tpu-vm --topology=v5p:4x4x4 --zone=us-east5-a --bucket=my-runs \\
      --repository=https://… --config=configs/llama.py:8b --workdir=/runs/llama
"""

OPTIONS = (
    ("nodes", int, "slurm: machines, one process each"),
    ("gpus", int, "slurm: GPUs of a machine"),
    ("time", str, "slurm: limit of one job, after which it is queued again; default 24:00:00"),
    ("partition", str, "slurm"),
    ("account", str, "slurm"),
    ("topology", str, "gke, tpu-vm: v5p:4x4x4"),
    ("slices", int, "gke, tpu-vm: so many of it, joined by DCN; default 1"),
    ("image", str, "gke: a container image with this repository as its working directory"),
    ("claim", str, "gke: a PersistentVolumeClaim that every pod can write, mounted at /runs"),
    ("zone", str, "tpu-vm"),
    ("project", str, "tpu-vm: default gcloud's own"),
    ("repository", str, "tpu-vm: a git address of this repository"),
    ("bucket", str, "tpu-vm: a Cloud Storage bucket, mounted at /runs"),
    ("spot", bool, "tpu-vm: chips that may be taken away"),
    ("setup", str, "slurm, tpu-vm: a shell line run first, such as one that activates Python"),
    ("retries", int, "restarts after crashes; default 10"),
)


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--on", choices=("slurm", "gke", "tpu-vm"), required=True)
    sub.add_argument("--config", default="", help="FILE.py[:variant]; the run's own if not given")
    sub.add_argument("--name", default="llm-jax", help="of the job; default llm-jax")
    sub.add_argument("--go", action="store_true", help="hand the job in; else only write its file")
    for option, kind, text in OPTIONS:
        how = {"action": "store_true"} if kind is bool else {"type": kind}
        sub.add_argument(f"--{option}", default=None, help=text, **how)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    """Writes a job and, asked to, hands it in."""
    from llm_jax.pod import submit as jobs

    config = config_of(args, overrides)  # refused here rather than by each of many machines
    train = ["train", *[f"--config={args.config}"] * bool(args.config)]
    train += [f"--workdir={args.workdir}", *(f"--config.{override}" for override in overrides)]
    given = {option: getattr(args, option) for option, _, _ in OPTIONS}
    given = {o: value for o, value in given.items() if value is not None and value is not False}
    job = jobs.make(args.on, args.name, train, given, ROOT)
    if job.devices:
        configs.mesh_sizes(config.mesh, job.devices)
    path = jobs.write(job)
    print(f"{job.text}\n{path} is the above; {'running' if args.go else 'to hand it in'}:")
    print(f"  {shlex.join(job.command)}")
    code = None
    if args.go:
        try:
            code = subprocess.run(job.command, check=False).returncode
        except FileNotFoundError as error:
            raise ConfigError(f"--go: {job.command[0]} is not installed here") from error
    return {"file": str(path), "command": job.command, "code": code, "failed": bool(code)}


VERB = Verb(run, add, "train as a job of Slurm, GKE or TPU VMs", ABOUT, EXAMPLES, keys=True)

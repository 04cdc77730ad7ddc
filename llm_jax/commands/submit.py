"""`submit`: writes the file of a training job and, with --go, submits it."""

import argparse
import shlex
import subprocess
from pathlib import Path

from llm_jax import config as configs
from llm_jax.commands.verb import ROOT, Verb, config_of
from llm_jax.config import ConfigError
from llm_jax.pod import submit as jobs

ABOUT = """Writes the job file to the current folder and prints it with the command that submits
it; --go runs that command. The job runs `launch.py train` with the given arguments, and resumes
after interruptions (docs/pod.md)."""

EXAMPLES = """examples:
  {program} submit --on=slurm --nodes=4 --gpus=8 --config=configs/gpt2.py:124m \\
      --workdir=/shared/runs/gpt2 --setup='source env/bin/activate'
  {program} submit --on=gke --topology=v5p:4x4x4 --image=REGISTRY/llm_jax \\
      --claim=runs --config=configs/llama.py:8b --workdir=/runs/llama
  {program} submit --on=tpu-vm --topology=v5p:4x4x4 --zone=us-east5-a --bucket=my-runs \\
      --repository=https://… --config=configs/llama.py:8b --workdir=/runs/llama
"""


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--on", choices=tuple(jobs.FILES), required=True)
    sub.add_argument("--config", default="", help="FILE.py[:variant]; default: that of the run")
    sub.add_argument("--name", default="llm-jax", help="name of the job; default llm-jax")
    sub.add_argument("--go", action="store_true", help="submit the job; default: write its file")
    for name, option in jobs.OPTIONS.items():
        kwargs = {"type": int} if type(option.default) is int else {}
        kwargs = {"action": "store_true", "default": None} if option.default is False else kwargs
        kwargs = {"action": "append"} if option.default == () else kwargs
        default = f"default {option.default}" if option.default else ""
        text = ": ".join(filter(None, (", ".join(option.systems), option.help)))
        sub.add_argument(f"--{name}", help="; ".join(filter(None, (text, default))), **kwargs)


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    config = config_of(args, overrides)  # checked here instead of on each machine
    train = [f"--config={args.config}"] * bool(args.config)
    train += [f"--config.{override}" for override in overrides]
    given = {name: getattr(args, name) for name in jobs.OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    here = ROOT if (ROOT / "launch.py").is_file() else None
    job = jobs.make(args.on, args.name, args.workdir, train, given, here)
    if job.devices:
        configs.mesh_sizes(config.mesh, job.devices)
    Path(job.file).write_text(job.text)
    print(f"{job.text}\n{job.file} holds the above; {'running' if args.go else 'to submit it'}:")
    print(f"  {shlex.join(job.command)}")
    code = None
    if args.go:
        try:
            code = subprocess.run(job.command, check=False).returncode
        except FileNotFoundError as error:
            raise ConfigError(f"--go: {job.command[0]} is not installed") from error
    return {"file": job.file, "command": job.command, "code": code, "failed": bool(code)}


VERB = Verb(run, add, "submit training to Slurm, GKE or TPU VMs", ABOUT, EXAMPLES, keys=True,
            workdir="new")

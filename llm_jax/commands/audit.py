"""`audit`: measures the limits of a trained run."""

import argparse
from pathlib import Path

from llm_jax.commands.verb import Verb, add_step, read_otherwise, tell
from llm_jax.config import ConfigError


def add(sub: argparse.ArgumentParser) -> None:
    add_step(sub)
    sub.add_argument("--only", default="", metavar="LIMIT,…", help="measure only these limits")
    sub.add_argument("--against", action="append", default=[], metavar="WORKDIR",
                     help="another audited run to compare with")
    sub.add_argument("--examples", type=int, default=128,
                     help="maximum documents or trials per measure; default 128")
    sub.add_argument("--data", action="append", default=[], metavar="FILE",
                     help="a further file to measure the loss on")
    sub.add_argument("--canary", action="append", default=[], metavar="TEXT",
                     help="a text planted in the training data, with a secret number")
    sub.add_argument("--watts", type=float, default=0.0, help="power of a device, for energy")
    sub.add_argument("--grid", type=float, default=0.0, help="kg of CO2e per kWh")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    for folder in args.against:
        if not (Path(folder) / "audit").is_dir():
            raise ConfigError(f"--against={folder}: has not been audited; run its audit first")
    from llm_jax import audit

    if args.examples < 2:
        raise ConfigError(f"--examples={args.examples}: must be at least 2")
    for name in ("watts", "grid"):
        if not 0 <= (value := getattr(args, name)) < float("inf"):
            raise ConfigError(f"--{name}={value}: must be at least 0")
    names = audit.chosen(args.only)
    options = audit.Options(args.examples, tuple(args.data), tuple(args.canary), args.watts,
                            args.grid)  # fmt: skip
    subject = audit.Subject(args.workdir, args.step, options)
    read_otherwise(subject.config, overrides)
    path, failed = audit.audit(subject, names, args.against, tell)
    print(f"step {subject.step}: {path}, and {path.with_suffix('.html')}")
    return {"step": subject.step, "report": str(path), "limits": names, "failed": failed}


VERB = Verb(run, add, "measure the limits of a run: cost, opacity, privacy, bias …",
            keys=True, about="""\
Measures the limits of a trained run (docs/audit.md) and writes WORKDIR/audit/: a JSON file per
limit, report.md and report.html, with the error and the command of every figure.""")

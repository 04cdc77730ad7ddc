"""`compress`: creates a smaller run from a trained one, and a table of all compressed runs."""

import argparse

from llm_jax.commands.verb import Verb, add_step
from llm_jax.config import ConfigError


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the options of the command to its parser."""
    add_step(sub)
    sub.add_argument("--to", dest="target", help="run folder to create, or to measure")
    sub.add_argument("--method", default="", help="int8, int4, nf4, prune:0.5, prune:2:4, "
                     "heads:0.5, low_rank:16 or layers:2; default: only measure --to")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    """Compresses, measures, and writes compress/report.md into the run folder."""
    from llm_jax import compress

    if args.method and not args.target:
        raise ConfigError(f"--method={args.method}: needs --to=FOLDER, the run to create")
    if args.method:
        compress.compress(args.workdir, args.target, args.method, args.step)
    if args.method or not args.target:  # also measure the run itself
        compress.add(args.workdir, compress.measure(args.workdir, args.step))
    found = compress.measure(args.target) if args.target else {}
    path = compress.add(args.workdir, found) if found else f"{args.workdir}/compress/report.md"
    if found:
        print(f"{args.target}: {found['bytes'] / 2**20:.2f} MiB, {found['score']} "
              f"{found['values'][found['score']]:.4g}, {found['tokens_per_second']:,.0f} tokens/s")
    print(f"all compressed runs of {args.workdir}: {path}")
    return found | {"report": str(path)}


VERB = Verb(run, add, "compress a run: int8, int4, pruned, low rank, fewer layers", about="""\
Creates a run at step 0 with compressed parameters of a checkpoint, to be used or trained further,
and measures both; without --method it only measures --to. docs/compress.md describes the methods
and distillation.""")

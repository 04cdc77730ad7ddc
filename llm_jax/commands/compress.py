"""`compress`: a smaller run of a trained one, and a table of all that were made of it."""

import argparse

from llm_jax.commands.verb import Verb, add_step
from llm_jax.config import ConfigError


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the command's own options to its parser."""
    add_step(sub)
    sub.add_argument("--to", dest="target", help="the run folder to be made, or to be measured")
    sub.add_argument("--method", default="", help="int8, int4, nf4, prune:0.5, prune:2:4, "
                     "heads:0.5 or layers:2; measures --to as it is if not given")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    """Compresses, measures, and writes compress/report.md into the run folder."""
    from llm_jax import compress

    if args.method and not args.target:
        raise ConfigError(f"--method={args.method}: needs --to=FOLDER, the run to be made")
    if args.method:
        compress.compress(args.workdir, args.target, args.method, args.step)
    if args.method or not args.target:  # once more also of the run itself
        compress.add(args.workdir, compress.measure(args.workdir, args.step))
    found = compress.measure(args.target) if args.target else {}
    path = compress.add(args.workdir, found) if found else f"{args.workdir}/compress/report.md"
    if found:
        print(f"{args.target}: {found['bytes'] / 2**20:.2f} MiB, {found['score']} "
              f"{found['values'][found['score']]:.4g}, {found['tokens_per_second']:,.0f} tokens/s")
    print(f"all that were made of {args.workdir}: {path}")
    return found | {"report": str(path)}


VERB = Verb(run, add, "a smaller run of a trained one: int8, int4, pruned, fewer layers", about="""\
Makes a run of a run's checkpoint with smaller parameters, at step 0, to be used or trained on, and
measures both; without --method it measures --to. docs/compress.md has the methods, and how a
student is distilled.""")

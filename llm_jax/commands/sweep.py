"""`sweep`: designs, runs and reports an ablation sweep."""

import argparse
from pathlib import Path

from llm_jax.commands.verb import Verb, python, tell
from llm_jax.files import read_json
from llm_jax.sweep import Sweep

ABOUT = """Trains every variant with the same seeds, each run in a separate process and folder
WORKDIR/runs/VARIANT/seedK, and writes WORKDIR/report/report.md. The same command resumes, and
retries failed runs; exit code 1 if anything failed."""

EXAMPLES = """examples:
  {program} sweep --config=configs/ablations/attention.py --workdir=runs/attention
  {program} sweep --config=configs/quickstart.py --workdir=runs/positions \\
      --axis=model.positions=learned,rotary,alibi --match=params --config.train.steps=300
  {program} sweep --config=configs/ablations/norms.py --workdir=runs/norms \\
      --index=0 --of=2                     # and another process or machine with --index=1
  {program} sweep --workdir=runs/norms --report       # of the finished runs
  {program} sweep --config=configs/ablations/norms.py --workdir=runs/tuned \\
      --tune=optimizer.learning_rate=1e-3,3e-3,1e-2 --config.data.test_fraction=0.03

A config file defines its axes in get_sweep(variant), next to get_config(variant); see
llm_jax/sweep/spec.py. --axis crosses them with further axes; the first value of each is the
baseline's. Commas in quotes or brackets belong to a value: model.attention="'a,b'",c.
"""


def add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", default="", help="FILE.py[:variant], with or without get_sweep")
    sub.add_argument("--axis", action="append", default=[], metavar="KEY=V1,V2,…")
    sub.add_argument("--tune", metavar="KEY=V1,V2,…", help=(
        "each variant takes the value with the lowest validation loss of seed 0, and is scored on "
        "test"))
    sub.add_argument("--without", action="append", metavar="VARIANT", help="exclude a variant")
    sub.add_argument("--seeds", type=int, help="runs per variant; default: that of the file, or 3")
    sub.add_argument("--match", help="none | params | flops: match them by model.mlp_dim")
    sub.add_argument("--baseline", help="the variant to compare with")
    sub.add_argument("--lengths", help="lengths at which cost is measured: 512,1024,… or none")
    sub.add_argument("--index", type=int, default=0, help="index of this process, 0 to OF - 1")
    sub.add_argument("--of", type=int, default=1, help="number of processes that share the work")
    sub.add_argument("--report", action="store_true", help="only write the report")


def run(args: argparse.Namespace, overrides: list[str]) -> dict:
    workdir = Path(args.workdir)
    sweep = read_json(workdir / "sweep.json") if args.report else _sweep(args)
    # Imported only now, so that errors appear quickly.
    from llm_jax.sweep import execute, report, results

    if not args.report:
        execute.share([], args.index, args.of)
        design = _designed(sweep, args, overrides)
        execute.execute(design, workdir, python(), args.index, args.of, tell)
    design = read_json(workdir / "sweep.json")
    states = [run.state() for run in results.runs(design, workdir)]
    path = report.write(workdir)
    counts = {name: states.count(name) for name in ("finished", "failed", "left")}
    print(", ".join(f"{n} {name}" for name, n in counts.items()) + f"; report: {path}")
    return counts | {"report": str(path), "variants": results.as_json(design, workdir)}


def _sweep(args: argparse.Namespace) -> Sweep:
    """Returns the sweep that the arguments describe; ConfigError for an invalid one."""
    from llm_jax.sweep import spec

    lengths = None if args.lengths is None else spec.lengths(args.lengths)
    sweep = spec.load(
        args.config, args.axis, seeds=args.seeds, match=args.match, baseline=args.baseline,
        lengths=lengths, tune=spec.axis(args.tune, "tune") if args.tune else None,
        without=args.without,
    )  # fmt: skip
    sweep.variants()
    return sweep


def _designed(sweep: Sweep, args: argparse.Namespace, overrides: list[str]) -> dict:
    import jax

    from llm_jax.sweep import design as designs
    from llm_jax.sweep import results

    # Only shapes are computed here; the accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    design = designs.commit(designs.make(sweep, args.config, overrides), Path(args.workdir))
    for line in results.describe_match(design):
        tell(f"matched {line}")
    for name, reason in design.get("impossible", {}).items():
        tell(f"excluded {name!r}: {reason}")
    return design


VERB = Verb(
    run, add, "train variants of a config over seeds and compare them", ABOUT, EXAMPLES, keys=True,
    workdir="new",
)  # fmt: skip

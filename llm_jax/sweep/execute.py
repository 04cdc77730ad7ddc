"""Runs a sweep: each run is a separate process, so that a crash affects only that run. No JAX."""

import datetime
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llm_jax import config as configs
from llm_jax import record
from llm_jax.config import ConfigError
from llm_jax.files import read_json, write_json
from llm_jax.sweep import results
from llm_jax.sweep.results import Run
from llm_jax.sweep.spec import read_by, slug

LAST_LINES = 12  # lines of a failed run's log stored with its exit code


def share(items: list, index: int, of: int) -> list:
    """Returns every of-th item from `index`; ConfigError for an invalid share."""
    if not 0 <= index < of:
        raise ConfigError(f"--index={index} --of={of}: needs --of of at least 1, and an --index "
                          "from 0 to below it")
    return items[index::of]


def execute(
    design: dict, workdir: Path, launch: list[str], index: int = 0, of: int = 1,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains the unfinished runs of this process's share, then runs missing measurements.

    Runs share compiled programs, in WORKDIR/compiled or JAX_COMPILATION_CACHE_DIR.

    Args:
      launch: the command line of launch.py, without a subcommand.
      tell: receives lines of progress.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((workdir / "compiled").resolve()))
    for item in share(results.planned(design), index, of):
        run = results.find(design, workdir, *item)
        if run and run.state() != "finished":
            _train(run, design, [*launch, "train", *arguments(design, run)], tell)
            tell(_progress(run, design, workdir, of))
    for _, run in share(results.chosen(design, workdir), index, of):
        if run.state() == "finished" and design.get("tuned"):
            _score(run, launch, tell)
        if run.state() == "finished" and design["reaches"]:
            asked = {"reaches": design["reaches"]}
            _measure("context", run.folder / "context.json", asked, tell)
    groups = share(list(results.grouped(design).items()), index, of)
    for name, labels in groups if design["lengths"] else []:
        file = workdir / "cost" / f"{slug(name)}.json"
        model = design["variants"][labels[0]]["config"]["model"]
        _measure("cost", file, {"model": model, "lengths": design["lengths"]}, tell)


def _score(run: Run, launch: list[str], tell: Callable) -> None:
    """Writes test.json: the loss on the whole test split, which is not used for selection."""
    file = run.folder / "test.json"
    if file.exists():
        return
    options = [f"--workdir={run.folder}", "--split=test", "--max_batches=0", "--json"]
    with file.with_suffix(".txt").open("w+") as log:
        code = _run([*launch, "eval", *options], log, tell)
        log.seek(0)
        found = [line for line in log if line.startswith("{")]
    if code or not found:
        tell(f"evaluation failed with exit code {code}, see {file.with_suffix('.txt')}")
        return
    write_json(file, json.loads(found[-1]), indent=1)


def _measure(module: str, file: Path, asked: dict, tell: Callable) -> None:
    """Runs a module that writes a measurement, unless the file exists; reports failures."""
    if file.exists() and read_json(file).get("asked") == asked:
        return
    tell(f"measuring {file}")
    file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"llm_jax.sweep.{module}", str(file), json.dumps(asked)]
    log_file = file.with_suffix(".txt")
    with log_file.open("w") as log:
        code = _run(command, log, tell)
    if code:
        tell(f"measurement failed with exit code {code}, see {log_file}")


def arguments(design: dict, run: Run) -> list[str]:
    """Returns the arguments of a run's train command."""
    variant = design["variants"][run.label]
    keys = variant["keys"] | {"seed": run.seed}
    shared = read_by(configs.from_dict(variant["config"]), design["overrides"])
    changes = [*shared, *(f"{key}={value}" for key, value in keys.items())]
    config = [f"--config={design['spec']}"] if design["spec"] else []
    return [*config, *(f"--config.{c}" for c in changes), f"--workdir={run.folder}"]


def _train(run: Run, design: dict, command: list[str], tell: Callable) -> None:
    """Trains a run; writes its command, exit code and last log lines to run.json."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with _alone(run.folder) as first:
        if not first:
            return
        note, began = {"command": shlex.join(command), "commit": record.commit()}, time.time()
        write_json(run.folder / "run.json", note, indent=1)
        with (run.folder / "log.txt").open("a") as log:
            code = _run(command, log, tell)
        lines = (run.folder / "log.txt").read_text(errors="replace").splitlines()
        note |= {"exit": code, "seconds": round(time.time() - began, 1)}
        if code:
            note["last_lines"] = lines[-LAST_LINES:]
        write_json(run.folder / "run.json", note, indent=1)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds the file lock of a run in the block; yields False if another process holds it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False


def _run(command: list[str], log: IO, tell: Callable[[str], None]) -> int:
    """Runs a process with its output in the log; returns its exit code.

    Forwards SIGTERM and Ctrl-C: the run saves and ends, then this process is interrupted.
    """
    child, asked = None, []

    def stop(number, _frame) -> None:
        asked.append(number)
        if child is not None:
            child.terminate()

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    paths = [str(record.ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        # In a separate session, so that the child gets Ctrl-C only once, from this process.
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        if asked:  # a signal came while it started
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        tell("stopped; the same command resumes")
        raise KeyboardInterrupt
    return code


def _progress(run: Run, design: dict, workdir: Path, of: int) -> str:
    """Describes how a run ended, and how many runs are finished, including other processes."""
    states = {other: other.state() for other in results.runs(design, workdir)}
    done, failed, left = ([*states.values()].count(s) for s in ("finished", "failed", "left"))
    notes = [other.note() for other, state in states.items() if state == "finished"]
    times = [note["seconds"] for note in notes if "seconds" in note]
    time_left = ""
    if times and left:
        seconds = round(sum(times) / len(times) * left / of)
        time_left = f", about {datetime.timedelta(seconds=seconds)} left"
    note, outcome = run.note(), "not finished"
    if states[run] == "finished":
        outcome = f"validation loss {run.rows()[-1]['eval_loss']:.4f}"
    elif states[run] == "failed":
        outcome = f"failed with exit code {note['exit']}, see {run.folder / 'log.txt'}"
    return (f"[{done} done, {failed} failed, {left} left of {len(states)}{time_left}] {run.label}, "
            f"seed {run.seed}: {outcome} ({note.get('seconds', 0):.0f} s)")

"""Runs a sweep: each run a process of its own, so that a crash hurts that run only. No JAX."""

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

import numpy as np

from llm_jax import config as configs
from llm_jax import record
from llm_jax.config import ConfigError
from llm_jax.files import read_json, write_json
from llm_jax.sweep import results
from llm_jax.sweep.results import Run
from llm_jax.sweep.spec import read_by, slug

ROOT = Path(__file__).parent.parent.parent
LAST_LINES = 12  # of a failed run's log that are kept beside its exit code


def share(items: list, index: int, of: int) -> list:
    """Returns every of-th item from `index`; ConfigError where there is no such share."""
    if not 0 <= index < of:
        raise ConfigError(f"--index={index} --of={of}: must be 0 to {of - 1} of at least 1")
    return items[index::of]


def execute(
    design: dict,
    workdir: Path,
    train: list[str],
    index: int = 0,
    of: int = 1,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains what is not finished of this process's share, then measures what is not measured.

    Args:
      train: the command that trains a run, without the run's own arguments.
      tell: takes a line of progress.
    """
    mine = share(results.runs(design, workdir), index, of)
    labels = share(list(design["variants"]), index, of)
    with _Children(tell) as children:
        for run in mine:
            if run.state() != "finished":
                _train(run, design, [*train, *arguments(design, run)], children)
                tell(_progress(run, design, workdir, of))
            if run.state() == "finished" and design["reaches"]:
                asked = {"reaches": design["reaches"]}
                _measure("context", run.folder / "context.json", asked, children, tell)
        for label in labels if design["lengths"] else []:
            file = workdir / "cost" / f"{slug(label)}.json"
            asked = {
                "model": design["variants"][label]["config"]["model"],
                "lengths": design["lengths"],
            }
            _measure("cost", file, asked, children, tell)


def _measure(
    module: str, file: Path, asked: dict, children: "_Children", tell: Callable[[str], None]
) -> None:
    """Has a module write what is asked for, unless the file holds it; a failure is told."""
    if file.exists() and read_json(file).get("asked") == asked:
        return
    tell(f"measuring {file}")
    file.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"llm_jax.sweep.{module}", str(file), json.dumps(asked)]
    log_file = file.with_suffix(".txt")
    with log_file.open("w") as log:
        code = children.run(command, log)
    if code:
        tell(f"measuring failed with exit code {code}, see {log_file}")


def arguments(design: dict, run: Run) -> list[str]:
    """What makes the train command that of one run."""
    variant = design["variants"][run.label]
    keys = variant["keys"] | {"seed": run.seed}
    shared = read_by(configs.from_dict(variant["config"]), design["overrides"])
    changes = [*shared, *(f"{key}={value}" for key, value in keys.items())]
    config = [f"--config={design['spec']}"] if design["spec"] else []
    return [*config, *(f"--config.{c}" for c in changes), f"--workdir={run.folder}"]


def _train(run: Run, design: dict, command: list[str], children: "_Children") -> None:
    """One run to its end; run.json says with what command, and what came of it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with _alone(run.folder) as first:
        if not first:
            return
        note, began = {"command": shlex.join(command), "commit": record.commit()}, time.time()
        write_json(run.folder / "run.json", note, indent=1)
        with (run.folder / "log.txt").open("a") as log:
            code = children.run(command, log)
        lines = (run.folder / "log.txt").read_text(errors="replace").splitlines()
        note |= {"exit": code, "seconds": round(time.time() - began, 1)}
        if code:
            note["last_lines"] = lines[-LAST_LINES:]
        write_json(run.folder / "run.json", note, indent=1)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process has this run in hand; while the block lasts, none takes it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False


class _Children:
    """Runs processes one after the other; a signal to end goes to the one at work.

    A run that is asked to stop saves and ends; then this process is interrupted too.
    """

    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell

    def __enter__(self) -> "_Children":
        self.stopping, self.starting, self.early, self.child = False, False, False, None
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.handlers = {n: signal.signal(n, self._stop) for n in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _stop(self, _number, _frame) -> None:
        self.stopping = True
        if self.child is not None:
            self.child.terminate()
        elif self.starting:
            self.early = True
        else:
            raise KeyboardInterrupt

    def run(self, command: list[str], log: IO) -> int:
        """Returns the exit code; output goes to the log."""
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # A session of its own: Ctrl-C reaches us alone, and the child once, from us. A signal that
        # comes while it starts waits for it: a child that nobody knows would train on.
        self.starting = True
        self.child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        self.starting = False
        if self.early:
            self.child.terminate()
        code = self.child.wait()
        self.child = None
        if self.stopping:
            self.tell("stopped; the same command goes on from here")
            raise KeyboardInterrupt
        return code


def _progress(run: Run, design: dict, workdir: Path, of: int) -> str:
    """How the run ended, and how the whole stands, runs of other processes included."""
    everything = results.runs(design, workdir)
    states = [other.state() for other in everything]
    done, failed, left = (states.count(s) for s in ("finished", "failed", "left"))
    times = [
        other.note()["seconds"]
        for other, state in zip(everything, states, strict=True)
        if state == "finished" and "seconds" in other.note()
    ]
    state, note = run.state(), run.note()
    what = {
        "finished": lambda: f"validation loss {run.rows()[-1]['eval_loss']:.4f}",
        "failed": lambda: f"failed with exit code {note['exit']}, see {run.folder / 'log.txt'}",
        "left": lambda: "not finished",
    }[state]()
    time_left = f", about {_minutes(np.mean(times) * left / of)} left" if times and left else ""
    return (
        f"[{done} done, {failed} failed, {left} left of {len(everything)}{time_left}] "
        f"{run.label}, seed {run.seed}: {what} ({note.get('seconds', 0):.0f} s)"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

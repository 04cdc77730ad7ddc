"""What a user sees on stderr while a run goes on."""

import datetime
import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Scores of an evaluation; of a task those that it has.
SCORES = ("accuracy", "f1", "exact_match", "bleu", "rougeL", "spearman", "recall_at_1", "margin")
SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "eval_loss": ("validation", "{:.3f}"),
    **{f"eval_{name}": (name, "{:.4g}") for name in SCORES},
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "skipped": ("skipped", "{:.0f}"),
}


class Reporter:
    """Facts, a live bar where stderr is a terminal, plain lines where it is not."""

    def __init__(self):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        handler = logging.StreamHandler()
        if self.console.is_terminal:
            handler = RichHandler(console=self.console, show_time=False, show_path=False)
        log = logging.getLogger("llm_jax")
        log.handlers, log.propagate = [handler], False  # libraries give the root handlers too
        log.setLevel(logging.INFO)
        self.seen: dict[str, str] = {}
        self.first: tuple[int, float] | None = None  # step and time that were shown first
        self.bar = None

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None:
        """Prints the facts, a line each, and starts the bar at `step` of `steps`."""
        for name, value in facts.items():
            self.note(f"{name}: {value}")
        self.steps = steps
        if self.console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=steps, completed=step, numbers="compiling …")
            self.bar.start()
        elif step < steps:
            self.note("compiling …")

    def note(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Shows the newest numbers of a logged step."""
        # Those of an evaluation are shown only with the step that it belongs to.
        self.seen = {key: text for key, text in self.seen.items() if not key.startswith("eval_")}
        for key, (label, form) in SHOWN.items():
            if values.get(key):
                self.seen[key] = f"{label} {form.format(values[key])}"
        numbers = "  ".join(self.seen[key] for key in SHOWN if key in self.seen)
        if self.bar:
            self.bar.update(self.task, completed=step, numbers=numbers)
        else:
            numbers += self._left(step)
            print(f"step {step}/{self.steps}  {numbers}", file=sys.stderr, flush=True)

    def _left(self, step: int) -> str:
        """The time that the remaining steps will take, at the pace since the first shown."""
        now = time.perf_counter()
        if self.first is None:
            self.first = step, now
        taken = step - self.first[0]
        if not taken or step >= self.steps:
            return ""
        seconds = (now - self.first[1]) / taken * (self.steps - step)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"

    def stop(self) -> None:
        """Ends the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None

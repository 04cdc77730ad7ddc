"""What a user sees on stderr while a run goes on."""

import datetime
import logging
import sys
import time
from typing import Any

# Scores of an evaluation; of a task those that it has.
SCORES = ("accuracy", "f1", "exact_match", "bleu", "rougeL", "spearman", "recall_at_1", "margin")
SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "validation {:.3f}",
    **{f"eval_{name}": f"{name} {{:.4g}}" for name in SCORES},
    "tokens_per_second": "tokens/s {:,.0f}",
    "mfu": "MFU {:.1%}",
    "skipped": "skipped {:.0f}",
}


class Reporter:
    """Facts, notes and the numbers of each logged step, a line each."""

    def __init__(self):
        log = logging.getLogger("llm_jax")
        # Libraries give the root handlers too.
        log.handlers, log.propagate = [logging.StreamHandler()], False
        log.setLevel(logging.INFO)
        self.seen: dict[str, str] = {}
        self.first: tuple[int, float] | None = None  # step and time that were shown first

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None:
        """Shows the facts of a run that goes on from `step` to `steps`."""
        self.steps = steps
        for name, value in facts.items():
            self.note(f"{name}: {value}")
        if step < steps:
            self.note("compiling …")

    def note(self, text: str) -> None:
        """Shows a line."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Shows the newest numbers, and the time left at the pace since the first shown."""
        # Those of an evaluation are shown only with the step that it belongs to.
        self.seen = {key: text for key, text in self.seen.items() if not key.startswith("eval_")}
        known = {key: form for key, form in SHOWN.items() if values.get(key)}
        self.seen |= {key: form.format(values[key]) for key, form in known.items()}
        numbers = [f"step {step}/{self.steps}", *(self.seen[k] for k in SHOWN if k in self.seen)]
        self.first = self.first or (step, time.perf_counter())
        if self.first[0] < step < self.steps:
            each = (time.perf_counter() - self.first[1]) / (step - self.first[0])
            left = datetime.timedelta(seconds=round(each * (self.steps - step)))
            numbers.append(f"{left} left")
        self.note("  ".join(numbers))

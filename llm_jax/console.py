"""Console output of a run, on stderr."""

import datetime
import logging
import re
import sys
import time
from typing import Any

# Evaluation scores shown, if available.
SCORES = ("accuracy", "f1", "exact_match", "bleu", "rougeL", "spearman", "recall_at_1", "margin")
PLURAL = re.compile(r"(?<=ch)es\b|s\b")  # the ending of a noun
SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "validation {:.3f}",
    **{f"eval_{name}": f"{name} {{:.4g}}" for name in SCORES},
    "tokens_per_second": "tokens/s {:,.0f}",
    "mfu": "MFU {:.1%}",
    "skipped": "skipped {:.0f}",
}


def counted(n: int, nouns: str) -> str:
    """Formats a number with a noun, given in the plural: '1 text', '2,000 texts'."""
    return f"{n:,} {PLURAL.sub('', nouns, count=1) if n == 1 else nouns}"


class Reporter:
    """Prints facts, notes and the values of each logged step, one line each."""

    def __init__(self):
        log = logging.getLogger("llm_jax")
        # Libraries also add handlers to the root logger.
        log.handlers, log.propagate = [logging.StreamHandler()], False
        log.setLevel(logging.INFO)
        self.seen: dict[str, str] = {}
        self.first: tuple[int, float] | None = None  # step and time of the first progress message

    def start(self, facts: dict[str, Any], step: int, steps: int) -> None:
        """Prints the facts of a run that continues from `step` to `steps`."""
        self.steps = steps
        for name, value in facts.items():
            self.note(f"{name}: {value}")
        if step < steps:
            self.note("compiling …")

    def note(self, text: str) -> None:
        """Prints a line."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Prints the newest values, and the remaining time estimated from the pace so far."""
        # Evaluation scores are shown only at their own step.
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

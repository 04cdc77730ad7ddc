"""Audits: measure the limits of a trained run; one file per limit.

Each limit is a `limit.Limit`. No other part of the code depends on them.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from llm_jax import record
from llm_jax.audit import report
from llm_jax.audit.limit import Limit
from llm_jax.audit.subject import Options, Subject
from llm_jax.config import ConfigError
from llm_jax.files import read_json

__all__ = ["LIMITS", "Limit", "Options", "Subject", "audit", "chosen"]

NAMES = (
    "cost", "generalisation", "context", "meaning", "opacity", "privacy", "bias", "robustness",
)  # fmt: skip
LIMITS: dict[str, Limit] = {
    name: import_module(f"llm_jax.audit.{name}").LIMIT for name in NAMES
}


def chosen(only: str) -> list[str]:
    """Parses the names in "a,b"; "" means all.

    Raises:
      ConfigError: an unknown limit.
    """
    names = [name.strip() for name in only.split(",")] if only else list(LIMITS)
    for name in names:
        if name not in LIMITS:
            raise ConfigError(f"--only={only}: {name!r} is not one of {', '.join(LIMITS)}")
    return names


def audit(
    subject: Subject, names: Sequence[str], against: Sequence[str | Path] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Path, list[str]]:
    """Measures limits into WORKDIR/audit/NAME.json, then writes report.md and report.html.

    The report includes the results of earlier calls, and those of audits of other runs, `against`.
    Returns its path, and the limits whose measure failed: the report gives the reasons.
    """
    folder, runs = subject.workdir / "audit", [subject.workdir, *map(Path, against)]
    folder.mkdir(exist_ok=True)
    reasons, failed = {}, []
    for name in names:
        limit, file = LIMITS[name], folder / f"{name}.json"
        if not (reason := limit.lacks(subject)):
            tell(f"{name} …")
            try:
                record.write(file, **{"step": subject.step} | limit.measure(subject))
            except ConfigError as error:
                reason = str(error)
                failed.append(name)
        if reason:
            reasons[name] = reason
            file.unlink(missing_ok=True)
            tell(f"{name}: {reason}")
    found = {name: {_label(run, runs): read_json(file) for run in runs
                    if (file := run / "audit" / f"{name}.json").is_file()}
             for name in LIMITS}  # fmt: skip
    labels = [_label(run, runs) for run in runs]
    found = {LIMITS[name]: by_run for name, by_run in found.items() if by_run}
    return report.write(folder, labels, found, reasons), failed


def _label(run: Path, runs: list[Path]) -> str:
    """Returns the name of a run, or its path if names are not unique."""
    names = [other.resolve().name for other in runs]
    return str(run) if names.count(run.resolve().name) > 1 else run.resolve().name

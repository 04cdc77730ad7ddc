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
) -> Path:
    """Measures limits into WORKDIR/audit/NAME.json, then writes report.md and report.html.

    The report includes the results of earlier calls, and those of audits of other runs, `against`.
    """
    folder, runs = subject.workdir / "audit", [subject.workdir, *map(Path, against)]
    for run in runs[1:]:
        if not (run / "audit").is_dir():
            raise ConfigError(f"--against={run}: has not been audited; run its audit first")
    folder.mkdir(exist_ok=True)
    for name in names:
        limit = LIMITS[name]
        if lack := limit.lacks(subject):
            (folder / f"{name}.json").unlink(missing_ok=True)
            tell(f"{name}: {lack}")
            continue
        tell(f"{name} …")
        result = {"step": subject.step} | limit.measure(subject)
        record.write(folder / f"{name}.json", **result)
    found = {name: {_label(run, runs): read_json(file) for run in runs
                    if (file := run / "audit" / f"{name}.json").is_file()}
             for name in LIMITS}  # fmt: skip
    labels = [_label(run, runs) for run in runs]
    return report.write(folder, labels, {LIMITS[k]: x for k, x in found.items() if x})


def _label(run: Path, runs: list[Path]) -> str:
    """Returns the name of a run, or its path if names are not unique."""
    names = [other.resolve().name for other in runs]
    return str(run) if names.count(run.resolve().name) > 1 else run.resolve().name

"""Provenance of recorded numbers: command, commit, versions, hardware, time; Markdown tables."""

import functools
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_jax.files import write_json

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy", "libtpu",
    "jax-cuda12-plugin", "nvidia-cudnn-cu12", "maxtext",
)  # fmt: skip


@functools.cache
def commit() -> str:
    """Returns the current commit; cached, since writing results changes files."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(ROOT), *args]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def check(found: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """Returns a record; ValueError if its commit is not in this history, or had changes."""
    named = found.get("commit", "")
    command = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", named, "HEAD"]
    if not named.isalnum() or subprocess.run(command, capture_output=True).returncode:
        raise ValueError(f"{where}: was made by commit {named!r}, which is not in this history")
    return found


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed PACKAGES."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def provenance() -> dict[str, Any]:
    """Returns command, commit, time, versions and hardware of this process."""
    return {
        "command": " ".join(["python", *sys.argv]).replace(f"{ROOT}/", ""),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
    }


def hardware() -> str:
    """Returns the processor, its number of cores, and the accelerator, if any."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.split(":", 1)[1] for x in info.read_text().splitlines() if "model name" in x]
        name = names[0].strip() if names else name
    text = f"{os.cpu_count()} cores of {name}"
    if "jax" in sys.modules:
        devices = sys.modules["jax"].devices()
        if devices[0].platform != "cpu":
            text = f"{len(devices)} x {devices[0].device_kind}; {text}"
    return text


def write(path: str | Path, **results: Any) -> None:
    """Writes results and their provenance as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, provenance() | results, indent=1)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Returns a Markdown table; escapes | in cells."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)

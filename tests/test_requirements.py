"""Tests that requirements have upper bounds and match the installed versions."""

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LINES = [
    pytest.param(file.name, text, id=f"{file.name}-{text}")
    for file in sorted(ROOT.glob("requirements*.txt"))
    for line in file.read_text().splitlines()
    if (text := line.partition("#")[0].strip()) and not text.startswith("-r")
]


@pytest.mark.parametrize(("file", "text"), LINES)
def test_is_bounded_above_and_met(file, text):
    requirement = Requirement(text)
    assert any(bound.operator in ("<", "<=", "==", "~=") for bound in requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        assert file != "requirements.txt"
        pytest.skip(f"{requirement.name} is not installed")
    assert version in requirement.specifier

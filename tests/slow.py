"""Marks cases of a parametrised test as slow, except a few quick ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def but(quick: Iterable[Any], cases: Iterable[Any]) -> list:
    """Returns the cases, all but some of them slow."""
    quick = [*quick]
    return [case if case in quick else _slow(case) for case in cases]


def every(n: int, cases: Iterable[Any]) -> list:
    """Returns the cases, all but every n-th of them slow."""
    cases = [*cases]
    return but(cases[::n], cases)


def _slow(case):
    if isinstance(case, type(pytest.param())):  # with marks, or a name, of its own
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)

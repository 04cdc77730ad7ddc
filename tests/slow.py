"""Which cases of a parametrised test are quick: the others are marked slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def but(quick: Iterable[Any], cases: Iterable[Any]) -> list:
    """Returns the cases, all but some of them slow."""
    quick = [*quick]
    slow = lambda case: pytest.param(*_arguments(case), marks=pytest.mark.slow)
    return [case if case in quick else slow(case) for case in cases]


def every(n: int, cases: Iterable[Any]) -> list:
    """Returns the cases, all but every n-th of them slow."""
    cases = [*cases]
    return but(cases[::n], cases)


def _arguments(case):
    return case if isinstance(case, tuple) else (case,)

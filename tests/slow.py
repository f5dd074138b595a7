"""Cases that only `pytest -m slow` tries, since others of the same claim are quick."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Marks one case of a parametrized test as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_after(count: int, cases: Iterable[Any]) -> list[Any]:
    """Marks all cases but the first `count` as slow; a tuple holds the values of several parameters."""
    return [
        case if i < count else slow(*(case if isinstance(case, tuple) else (case,)))
        for i, case in enumerate(cases)
    ]


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Marks all cases but the quick ones as slow."""
    kept, cases = list(quick), list(cases)
    assert all(case in cases for case in kept), f"{kept} are not all among {cases}"
    return slow_after(len(kept), [*kept, *(case for case in cases if case not in kept)])

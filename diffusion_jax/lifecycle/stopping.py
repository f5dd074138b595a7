"""Requests to stop this process, which loops check between iterations.

An exception raised by a signal handler would be swallowed if Python happens to run it in a callback of a compiled
program, a destructor or a hook of the garbage collector. So a handler only calls `request`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_requested: str | None = None
_held = 0


class Stopped(BaseException):
    """The user or the system asked this process to stop; finished work is kept."""


def request(name: str) -> None:
    """Asks this process to stop at the next check.

    Args:
      name: Source of the request, such as "SIGTERM"; the first one counts.
    """
    global _requested
    _requested = _requested or name


def requested() -> str | None:
    """Returns the source of a request to stop, or None."""
    return _requested


def check() -> None:
    """Raises `Stopped` if this process was asked to stop; called where a loop has saved its finished work.

    It does nothing on threads other than the main one, and inside `held`.

    Raises:
      Stopped: There is a request.
    """
    if _requested and not _held and threading.current_thread() is threading.main_thread():
        raise Stopped(_requested)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Context in which `check` does not raise: the caller calls `requested` itself."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


def forget() -> None:
    """Clears a request that has been handled."""
    global _requested
    _requested = None

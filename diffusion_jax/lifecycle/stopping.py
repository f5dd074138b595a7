"""Whether this process was asked to stop. Loops look between two rounds.

An exception that a signal's handler raised would be swallowed wherever Python happens to call back: in a callback of a
compiled program, a destructor, a hook of the garbage collector. So a handler only calls `request`.
"""

import contextlib
import threading
from collections.abc import Iterator

_requested: str | None = None
_held = 0


class Stopped(BaseException):
    """The user or the system asked this process to stop; what is finished is kept."""


def request(name: str) -> None:
    """Asks this process to stop at the next look.

    Args:
      name: Who asks, such as "SIGTERM"; the first one counts.
    """
    global _requested
    _requested = _requested or name


def requested() -> str | None:
    """Returns who has asked this process to stop, or None."""
    return _requested


def check() -> None:
    """Raises `Stopped` if this process was asked to stop; to be called where a loop has kept what it has finished.

    It does nothing on other threads than the main one, and inside `held`.

    Raises:
      Stopped: It was.
    """
    if _requested and not _held and threading.current_thread() is threading.main_thread():
        raise Stopped(_requested)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within, `check` does not raise: the caller looks at `requested` itself."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


def forget() -> None:
    """Takes a request as dealt with."""
    global _requested
    _requested = None

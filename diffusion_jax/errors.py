"""Errors that a command reports in one clear line instead of a stack trace."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 60  # Characters of a value in a message.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit on file sizes.


class InputError(ValueError):
    """Wrong input. The message has the name, the value, and what is allowed. A command exits with status 2."""


class RunError(RuntimeError):
    """A job cannot continue (disk full, loss not finite, …). A command exits with status 1."""


def reason(error: BaseException) -> str:
    """Returns the cause in one line, in the operating system's words if there are any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if said := disk_full(error):
        return os.strerror(said).lower()
    return (str(error) or type(error).__name__).splitlines()[0]


def disk_full(error: BaseException) -> int | None:
    """Returns the error number if it is in `DISK_FULL`, even if a library only quotes the message; else None."""
    number = error.errno if isinstance(error, OSError) else None
    return next((n for n in DISK_FULL if n == number or os.strerror(n) in str(error)), None)


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the closest known name, or None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest known name, or "" if none is close."""
    close = closest(name, known)
    return "" if close is None else f" Did you mean {close!r}?"


def shortened(value: object) -> str:
    """Returns the value for a message, or only its type if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST and "\n" not in text else f"of type {type(value).__name__}"


def expect(name: str, value: object, kind: Any, such_as: str) -> None:
    """Raises an InputError, which says what is expected, if an argument is not an instance of a kind.

    Args:
      name: Name of the argument.
      value: The argument.
      kind: A type, or a protocol.
      such_as: What is expected, for the message.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} is {shortened(value)}; it must be {such_as}")


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """Returns known[name].

    Args:
      what: What the known things are, for the message.
      name: Key to look up.
      known: Things by name.

    Raises:
      InputError: The name is unknown; the message lists the known names and suggests the nearest.
    """
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"unknown {what} {shortened(name)}; choose one of {', '.join(known)}.{nearest(str(name), known)}"
        )
    return known[name]

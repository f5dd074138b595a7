"""SIGINT and SIGTERM: stop at once, or, while training, at the next safe point."""

import contextlib
import signal
import types
from collections.abc import Iterator

EXIT_STOPPED = 75  # EX_TEMPFAIL: saved, not finished; run the same command again.


class Stopped(BaseException):
    """The user or the system asked this process to stop, and nothing is left to save."""


class StopSignals:
    """Turns SIGINT and SIGTERM into `Stopped`, or into `requested` inside `deferred()`.

    Attributes:
      requested: Name of the signal that arrived inside `deferred()`, else None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deferred = False

    def install(self) -> None:
        """Handles the signals from now on. A second SIGINT stops at once, saved or not."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `requested`: the caller looks at it and saves.

        Others may take SIGTERM meanwhile; afterwards it is handled here again.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self.install()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._deferred and not (self.requested and number == signal.SIGINT):
            self.requested = name
        else:
            raise Stopped(name)

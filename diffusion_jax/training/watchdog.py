"""A watchdog that ends the process when a step hangs, and prints the stacks of all threads."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

STATUS = 1


class Watchdog:
    """Ends the process if no step ends for too long: a launcher can start it again.

    A hung collective or a dead file system would otherwise hold a pod forever. The watchdog prints the stacks of
    Python's threads.
    """

    def __init__(self, seconds: float) -> None:
        """Starts to watch.

        Args:
          seconds: Longest time between two steps; 0: the watchdog never acts.
        """
        self._seconds = seconds
        self._sign = time.monotonic()
        self._step = 0
        self._paused = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        if seconds > 0:
            self._thread.start()

    def done(self, step: int) -> None:
        """Records that this step has ended."""
        self._sign, self._step = time.monotonic(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the watchdog inside a `with` block, as work between steps may take any time."""
        self._paused = True
        try:
            yield
        finally:
            self._sign, self._paused = time.monotonic(), False

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if not self._paused and time.monotonic() - self._sign > self._seconds:
                self._act()

    def _act(self) -> None:
        print(
            f"error: no step has ended for {self._seconds:g} s (train.step_timeout), the last was step {self._step}; "
            "stacks of all threads:",
            file=sys.stderr,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(STATUS)

"""SIGINT and SIGTERM: the first asks the command to stop at the next safe point, a second one ends it at once.

But for a repeat within `SAME` seconds, and for SIGTERM while several processes train, which is JAX's
(`parallel.preemption`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Iterator

from diffusion_jax.lifecycle import stopping

EXIT_STOPPED = 75  # EX_TEMPFAIL: saved, not finished; run the same command again.
NUMBERS = (signal.SIGINT, signal.SIGTERM)
SAME = 0.5  # Seconds in which a signal counts once: `timeout` and some schedulers send it twice.

_handled = False


def block() -> None:
    """Lets signals wait until `install`, also over an exec in between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)


def install() -> threading.Thread:
    """Handles the signals from now on, to the end of the process; returns the thread that reads their numbers.

    Python's main thread calls this.
    """
    global _handled
    _handled = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    # A handler in Python would wait for the main thread, which may be in a compiler for minutes; the bytes do not.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read,), name="signals", daemon=True)
    watch.start()
    for number in NUMBERS:
        signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
    atexit.register(_ignore)
    return watch


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within, signals are handled; afterwards as before, unless the whole process handles them."""
    global _handled
    if _handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = [signal.getsignal(number) for number in NUMBERS]
    wakeup = signal.set_wakeup_fd(-1)
    watch = install()
    try:
        yield
    finally:
        for number, handler in zip(NUMBERS, handlers, strict=True):
            signal.signal(number, handler)
        os.close(signal.set_wakeup_fd(wakeup))
        watch.join(SAME)  # Else a number that it has yet to read would stop the next command.
        _handled = False
        atexit.unregister(_ignore)
        stopping.forget()


def _ignore() -> None:
    """Lets the status stand that is decided: Python takes its handlers away before the process is gone."""
    if _handled:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: types.FrameType | None) -> None:
    stopping.request(signal.Signals(number).name)


def _watch(pipe: int) -> None:
    """Reads the numbers of signals as they come."""
    first: float | None = None
    with open(pipe, "rb", buffering=0) as numbers:
        while data := numbers.read(1):
            number, now = data[0], time.monotonic()
            if number not in NUMBERS:
                continue
            stopping.request(signal.Signals(number).name)
            first = now if first is None else first
            if now - first > SAME:
                _end(number)


def _end(number: int) -> None:
    line = f"{signal.Signals(number).name} again: ended at once; run the same command to go on from what was kept\n"
    os.write(2, line.encode())
    os._exit(128 + number)

"""System file locks, for processes that wait until one of them has prepared something.

These differ from the ownership of a folder (`lifecycle.ownership`), which other commands are refused, also from other
hosts. Here every process waits, however long it takes, and the system releases the lock as soon as its owner dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.lifecycle import stopping
from diffusion_jax.reading.regular import descriptor_of


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for a lock and holds it; the system releases it if the process dies.

    Raises:
      OSError: The file cannot be created, or the name belongs to something else, such as a pipe.
      Stopped: A signal arrived during the wait; the system's own wait would not notice it.
    """
    with os.fdopen(descriptor_of(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopping.check()
                time.sleep(0.05)
        yield

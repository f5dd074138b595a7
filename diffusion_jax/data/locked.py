"""A lock file of the system, for processes that wait until one of them has prepared something.

A folder's owner (`lifecycle.ownership`) is another thing: those who are refused are told of it, also on other hosts.
Here nobody is refused, however long it takes, and the system gives the lock back the moment that its owner dies.
"""

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
    """Holds a lock that the system takes back from a process that dies; waits for it.

    Raises:
      OSError: The file cannot be made, or something else has its name, such as a pipe.
      Stopped: A signal came while it waited, which the system's own wait would not notice.
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

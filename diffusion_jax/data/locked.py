"""A lock file of the system, for processes that wait until one of them has prepared something."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.lifecycle import stopping


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system takes back from a process that dies; waits for it.

    Raises:
      Stopped: A signal came while it waited, which the system's own wait would not notice.
    """
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopping.check()
                time.sleep(0.05)
        yield

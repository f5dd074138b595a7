"""The command line in a fresh process, its lines read as they come, with the time of each."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Line(NamedTuple):
    """A line of standard error, and when it came, in seconds since the process was started."""

    seconds: float
    text: str


class Command:
    """`python -m diffusion_jax.main` with its own cache folder.

    Args:
      arguments: The flags.
      cache: Folder of prepared data and compiled programs.
      echo: Whether to print the lines as well.
    """

    def __init__(self, arguments: Sequence[str], cache: Path, *, echo: bool = True) -> None:
        environment = {**os.environ, "DIFFUSION_JAX_CACHE": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self._echo = echo
        self._lines: list[Line] = []
        self._peak_memory = 0
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_jax.main", *arguments],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[Line]:
        """Yields the lines that have not been read yet, until the process closes its standard error."""
        assert self._process.stderr is not None
        for text in self._process.stderr:
            line = Line(time.perf_counter() - self._started, text.rstrip())
            self._lines.append(line)
            if self._echo:
                print(f"  {line.seconds:7.1f} s  {line.text}", flush=True)
            yield line

    def wait_for(self, text: str) -> Line:
        """Reads up to the first line that has this text.

        Raises:
          RuntimeError: The process ended without it.
        """
        for line in self.lines():
            if text in line.text:
                return line
        said = "\n".join(line.text for line in self._lines[-5:])
        raise RuntimeError(f"ended with status {self._process.wait()} without {text!r}:\n{said}")

    def send(self, signal: int) -> None:
        """Sends a signal to the process."""
        self._process.send_signal(signal)

    def limit_files(self, size: int) -> None:
        """Lets no file that the process writes from now on grow beyond this many bytes (Linux)."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))

    def runs(self) -> bool:
        """Whether the process has not ended."""
        if self._process.returncode is not None:
            return False
        # It is left to `finish`, which asks how much memory it took.
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def said(self) -> list[str]:
        """Returns the lines that were read."""
        return [line.text for line in self._lines]

    def peak_memory(self) -> int:
        """Returns the largest resident memory of the process, finished, in bytes (Linux)."""
        return self._peak_memory

    def finish(self, status: int) -> float:
        """Reads to the end; returns the seconds from start to exit.

        Raises:
          RuntimeError: The exit status is not `status`.
        """
        for _ in self.lines():
            pass
        _, ended, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = found = os.waitstatus_to_exitcode(ended)
        self._peak_memory = usage.ru_maxrss * 1024
        if found != status:
            said = "\n".join(line.text for line in self._lines[-5:])
            raise RuntimeError(f"exit status {found}, not {status}:\n{said}")
        return time.perf_counter() - self._started

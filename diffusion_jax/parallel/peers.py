"""Heartbeats between the processes of a run: if one dies, the others exit and name it.

A collective operation waits forever for a dead process, and JAX's own heartbeat aborts without naming it. So each
process writes a counter to the coordination service every few seconds and reads those of the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from diffusion_jax.parallel import distributed

INTERVAL = 2.0
SILENCE = 20.0  # Seconds without a heartbeat after which a process is considered dead.
# A failed process leaves the others time to report: they may have failed for the same reason.
LEAVE_TIMEOUT = 10.0
_FOLDER = "diffusion_jax/alive"

_watch: _Watch | None = None


def watch() -> None:
    """Starts sending and watching heartbeats; every process calls this once."""
    global _watch
    mine = f"{socket.gethostname()}, pid {os.getpid()}"
    names = [
        f"process {i} ({where})" for i, where in enumerate(distributed.exchange("hosts", mine))
    ]
    _watch = _Watch(names)
    _watch.start()


def name_the_missing(timeout: float = SILENCE + 3 * INTERVAL) -> None:
    """Exits if another process is dead; called when something that all processes do has failed.

    Returns only if all other processes are alive, or there are none.

    Args:
      timeout: Seconds to watch for a dead process.
    """
    if _watch is not None:
        _watch.join(timeout)  # The thread ends the process if it finds one.


def finish() -> None:
    """Ends the heartbeats of a process that is done, so that the others no longer expect them."""
    if _watch is not None:
        _watch.end("")


def fail(status: int, why: str) -> None:
    """Ends a failed process at once, unless all processes fail; called before the exit.

    An ordinary exit would wait for the other processes, which wait for this one. So they are told to exit
    too. If all processes fail within a short time, they exit in the ordinary way.

    Args:
      status: Exit status.
      why: One line for the others.
    """
    if _watch is None:
        return
    _watch.end(why or f"status {status}", status)
    try:
        distributed.client().wait_at_barrier("fail", int(LEAVE_TIMEOUT * 1000))
    except Exception:  # Whatever the error, the others are gone.
        if gone := _watch.silent():
            print(f"note: no sign of {', '.join(gone)} since: it died or hangs", file=sys.stderr)
        _exit(status)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Watch(threading.Thread):
    """Thread that sends and watches heartbeats."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(name="peers", daemon=True)
        self._ended: str | None = None  # Reason, or "" for success; None: still running.
        self._status: int | None = None  # Exit status of this process if it has failed.
        self._names = names
        self._me = jax.process_index()
        self._count = 0
        self._telling = (
            threading.Lock()
        )  # Otherwise a heartbeat could follow the message of the end.
        self._seen = {i: ("", time.monotonic()) for i in range(len(names)) if i != self._me}
        self._abort = _on_abort(self._explain_abort)

    def run(self) -> None:
        while self._ended is None:
            with contextlib.suppress(Exception):  # Then no heartbeats are seen.
                self._tell()
                self._look()
            for process, (said, when) in self._seen.items():
                self._judge(process, said, time.monotonic() - when)
            time.sleep(INTERVAL)

    def end(self, why: str, status: int | None = None) -> None:
        """Ends the watch and tells the others why."""
        self._ended, self._status = why, status
        with contextlib.suppress(Exception):  # Process 0 may be gone.
            self._tell()

    def silent(self) -> list[str]:
        """Returns the names of processes without a recent heartbeat that have not reported their end."""
        with contextlib.suppress(Exception):  # Process 0 may be gone.
            self._look()
        now = time.monotonic()
        return [
            self._names[process]
            for process, (said, when) in self._seen.items()
            if _reason(said) is None and now - when > 2 * INTERVAL
        ]

    def _tell(self) -> None:
        with self._telling:
            self._count += 1
            said = json.dumps({"count": self._count, "ended": self._ended})
            distributed.client().key_value_set(f"{_FOLDER}/{self._me}", said, allow_overwrite=True)

    def _look(self) -> None:
        for key, said in distributed.client().key_value_dir_get(_FOLDER):
            process = int(key.rpartition("/")[2])
            if process != self._me and said != self._seen[process][0]:
                self._seen[process] = said, time.monotonic()

    def _judge(self, process: int, said: str, silent: float) -> None:
        """Ends this process if another one has failed or is dead."""
        ended = _reason(said)
        if ended is None and silent > SILENCE:
            self._give_up(f"no sign of {self._names[process]} for {silent:.0f} s: it died or hangs")
        elif ended and silent > LEAVE_TIMEOUT / 2:
            self._give_up(f"{self._names[process]} has stopped: {ended}")

    def _give_up(self, what: str) -> None:
        if self._ended is None:  # Otherwise this process is about to exit by itself.
            line = f"error: {what}; run the same command again to continue from the last checkpoint"
            print(line, file=sys.stderr)
            _exit(1)

    def _explain_abort(self) -> None:
        """Reports why JAX aborts this process, as it does as soon as the coordinator, process 0, is gone."""
        if self._status is not None:  # This process's own error made the others exit.
            _exit(self._status)
        problem = unreachable(distributed.coordinator())
        if self._me != 0 and problem:
            ended = _reason(self._seen[0][0])
            how = f"has stopped: {ended}" if ended else f"is gone: {problem}"
            self._give_up(f"{self._names[0]} {how}")


def _reason(said: str) -> str | None:
    """Returns why the process with this message has ended, "" for success; None: it is alive."""
    return json.loads(said)["ended"] if said else None


def unreachable(address: str) -> str:
    """Returns why there is no answer at host:port, or "" if there is one."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        return str(error)
    return ""


def _on_abort(explain: Callable[[], None]) -> Any:
    """Registers a function to be called when C++ code aborts this process, on that thread.

    Returns an object that must be kept alive. Python's own handlers would never run: they wait for the interpreter.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: explain())
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    return handler

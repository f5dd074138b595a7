"""Ownership of folders by lock files, which survive a killed owner and are taken over once it is gone.

A claim is a separate file, written whole and then linked to the name of the lock, which succeeds only once and is
atomic on NFS too. To take over a lock, a process first claims a lock named by the contents of the old one, so only one
of several processes that found the same owner gone replaces the file; if it dies, that lock is taken over likewise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.lifecycle.owner import (
    Owner,
    claim_of,
    is_copy,
    lives,
    read_owner,
    this_system,
)
from diffusion_jax.writing.atomic import atomic_write

NAME = "lock.json"
HEARTBEAT_SECONDS = 5.0  # Interval of heartbeats.
STALE_AFTER_SECONDS = (
    60.0  # Time without a heartbeat after which an owner on another system is considered gone.
)
WRITE_WAIT_SECONDS = 120.0  # Time to wait for an owner that only writes a file.
POLL_SECONDS = 0.05
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


_held: list[Lock] = []


def own(folder: Path, what: str) -> None:
    """Makes this process the owner of a folder until `release`.

    Raises:
      InputError: Another process owns it.
      OSError: The lock cannot be written.
    """
    if any(lock.path.parent.samefile(folder) for lock in _held):
        return
    lock = Lock(folder / NAME, what)
    lock.acquire()
    _held.append(lock)


def check() -> None:
    """Checks that this process still owns its folders and that they exist, before it writes to them.

    Raises:
      RunError: A folder is gone or was taken over.
    """
    for lock in _held:
        lock.check()


def release() -> None:
    """Releases all folders that this process owns."""
    while _held:
        _held.pop().release()


class Lock:
    """A lock file, held by one process at a time.

    Args:
      path: The file, in an existing folder.
      what: Description of this process, for messages.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        self._file: int | None = None
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="owner", daemon=True)

    def acquire(self, wait: float = 0.0) -> None:
        """Takes the lock; if its owner is gone, takes it over, with a line on standard error.

        An owner on another host, which cannot be inspected, is given `STALE_AFTER_SECONDS` for a heartbeat.

        Args:
          wait: Seconds to wait for a living owner.

        Raises:
          InputError: Another process holds it.
          OSError: The file cannot be written.
        """
        claim = self.path.with_name(f"{self.path.name}.{os.urandom(8).hex()}")
        with claim.open("x") as file:
            file.write(claim_of(self._what, self.path.parent))
        try:
            taken_from = _take(self.path, claim, time.monotonic() + wait)
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        finally:
            claim.unlink(missing_ok=True)
        self._heart.start()
        if taken_from is not None:
            copied = is_copy(taken_from, self.path)
            line = (
                f"note: {self.path} is a copy of the lock of {taken_from}, which owns another folder; taken over"
                if copied
                else f"note: {taken_from} left {self.path} behind and is gone; taken over"
            )
            print(line, file=sys.stderr)
            _clean(self.path)

    def check(self) -> None:
        """Checks that the file still exists and is this process's.

        Raises:
          RunError: The folder was deleted or moved, or another process took it over.
        """
        if not self._is_mine():
            folder, other = self.path.parent, read_owner(self.path)
            raise RunError(
                f"{folder} was taken over by {other}"
                if other
                else f"{folder} was deleted or moved while this command ran ({self.path.name} is gone)"
            )

    def release(self) -> None:
        """Releases the lock; does nothing if it is not held."""
        if self._file is None:
            return
        self._released.set()
        self._heart.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self.path.unlink()
        os.close(self._file)
        self._file = None

    def _is_mine(self) -> bool:
        assert self._file is not None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        return False

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            # The next one may succeed; `check` raises if the lock is lost.
            with contextlib.suppress(OSError):
                assert self._file is not None
                os.utime(self._file)


@contextlib.contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Context with a short lock on a file: other processes that want to rewrite it wait."""
    lock = Lock(path.with_name(f"{path.name}.lock"), f"a command that writes {path.name}")
    lock.acquire(wait=WRITE_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def owned_write(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, but in a folder of this command, which must still exist and is not created again.

    Raises:
      RunError: The folder that this command owns was deleted or taken over.
    """
    check()
    with atomic_write(path) as unfinished:
        yield unfinished


# ---- taking ---------------------------------------------------------------------------------------------------


def _take(path: Path, claim: Path, deadline: float) -> Owner | None:
    """Turns the claim into the lock; returns the owner that it was taken over from, or None.

    Raises:
      InputError: The owner is still alive at the deadline.
    """
    while not _link(claim, path):
        stopping.check()
        owner = read_owner(path)
        if owner is None:  # Released just now.
            continue
        try:
            if not _is_gone(owner, path, claim):
                raise InputError(_in_use(owner, path))
            turn = path.with_name(f"{path.name}.{owner.token}")
            _take(turn, claim, time.monotonic())
            try:
                now = read_owner(path)
                if now is not None and now.token == owner.token:
                    with atomic_write(path) as ours:
                        _link(claim, ours)
                    return owner
            finally:
                turn.unlink(missing_ok=True)
        except InputError:  # The owner is alive, or another process is taking over from it.
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
    return None


def _link(claim: Path, path: Path) -> bool:
    """Links the claim to this name if there is no such file; copies it on a file system without links."""
    try:
        os.link(claim, path)
        return True
    except FileExistsError:
        # On NFS the reply to a successful link may be lost, so that the retry reports that the file exists.
        with contextlib.suppress(OSError):  # Gone by now, or a dangling link.
            return path.samefile(claim)
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:
        with path.open("x") as file:
            file.write(claim.read_text())
        return True
    except FileExistsError:
        return False


def _in_use(owner: Owner, path: Path) -> str:
    known = owner.place == this_system()
    advice = "wait until it is done, or stop it"
    sure = "" if known else f"; if that is gone, delete {path}"
    return f"{path.parent} is in use by {owner}: {advice}{sure}"


# ---- owners that are gone ----------------------------------------------------------------------------------


def _is_gone(owner: Owner, path: Path, claim: Path) -> bool:
    """Whether the owner has ended; judged by heartbeats if it is on another system."""
    if owner.place == this_system():
        return is_copy(owner, path) or not lives(owner.pid, owner.start_ticks)
    first = None
    while True:
        try:
            now, beat = read_owner(path), path.stat().st_mtime
            # Use the file system's clock, which may differ from this host's.
            os.utime(claim)
            age = claim.stat().st_mtime - beat
        except OSError:  # It was released just now, or is a dangling link.
            return False
        if path.is_dir():  # A file cannot replace it.
            return False
        if now is None or now.token != owner.token or first not in (None, beat):
            return False  # It was alive until now.
        if age > STALE_AFTER_SECONDS:
            return True
        if first is None:
            line = f"{path.parent} is in use by {owner}; waiting up to {STALE_AFTER_SECONDS:.0f} s for its heartbeat"
            print(f"note: {line}", file=sys.stderr)
        first = beat
        stopping.check()
        time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))


def _clean(path: Path) -> None:
    """Removes files that killed claimants of a lock have left beside it."""
    for left in path.parent.glob(f"{path.name}.*"):
        owner = read_owner(left)
        if (
            owner is not None
            and owner.place == this_system()
            and not lives(owner.pid, owner.start_ticks)
        ):
            left.unlink(missing_ok=True)

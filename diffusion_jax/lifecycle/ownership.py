"""Who owns a folder: a lock file that a kill of its owner leaves, and that is taken over once the owner is gone.

A claim is a file of its own, written whole and then linked to the name of the lock, which succeeds once: that is
atomic on NFS too. Who takes over a lock first claims a lock named by the contents of the old one, so of several that
found the same owner gone one replaces the file; that second lock is taken over likewise if its owner dies.
"""

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
HEARTBEAT_SECONDS = 5.0  # Seconds between two signs of life.
STALE_AFTER_SECONDS = (
    60.0  # An owner that cannot be looked for is taken to be gone after as long without one.
)
WRITE_WAIT_SECONDS = 120.0  # Seconds to wait for one that only writes a file.
POLL_SECONDS = 0.05
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


_held: list["Lock"] = []


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
    """Looks whether the folders that this process owns are still there and its own, before it writes to them.

    Raises:
      RunError: One is not.
    """
    for lock in _held:
        lock.check()


def release() -> None:
    """Gives back all folders that this process owns."""
    while _held:
        _held.pop().release()


class Lock:
    """A lock file, held by one process at a time.

    Args:
      path: The file; its folder is there.
      what: What this process does, for the others.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        self._file: int | None = None
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="owner", daemon=True)

    def acquire(self, wait: float = 0.0) -> None:
        """Takes the lock; one whose owner is gone is taken over, with a line on standard error.

        An owner on another host, which cannot be looked for, is given `STALE_AFTER_SECONDS` seconds for a sign of life.

        Args:
          wait: Seconds to wait for an owner that lives.

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
        """Looks whether the file is still there and this process's.

        Raises:
          RunError: It is not: the folder was deleted or moved, or another process took it over.
        """
        if not self._is_mine():
            folder, other = self.path.parent, read_owner(self.path)
            raise RunError(
                f"{folder} was taken over by {other}"
                if other
                else f"{folder} was deleted or moved while this command ran ({self.path.name} is gone)"
            )

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
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
            # The next one may succeed; `check` says if it is lost.
            with contextlib.suppress(OSError):
                assert self._file is not None
                os.utime(self._file)


@contextlib.contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Within, no other process reads and rewrites a file: it waits until this one is done."""
    lock = Lock(path.with_name(f"{path.name}.lock"), f"a command that writes {path.name}")
    lock.acquire(wait=WRITE_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def owned_write(path: Path) -> Iterator[Path]:
    """As `atomic_write`, in a folder of this command: it must still be there, and is not made anew.

    Raises:
      RunError: The folder that this command owns was deleted or taken over.
    """
    check()
    with atomic_write(path) as unfinished:
        yield unfinished


# ---- taking ---------------------------------------------------------------------------------------------------


def _take(path: Path, claim: Path, deadline: float) -> Owner | None:
    """Makes the claim the lock; returns the owner that it was taken over from, None if there was none.

    Raises:
      InputError: Its owner lives, also after the deadline.
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
        except InputError:  # It lives, or another one that is taking over from it.
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
    return None


def _link(claim: Path, path: Path) -> bool:
    """Gives the claim this name too, if there is no such file; a file system without links gets a copy."""
    try:
        os.link(claim, path)
        return True
    except FileExistsError:
        # On NFS the answer to a link that was made may be lost, and the next says that it is there.
        with contextlib.suppress(OSError):  # Gone by now, or a link to nothing.
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
    """Whether the owner has ended; one that cannot be looked for, by its signs of life."""
    if owner.place == this_system():
        return is_copy(owner, path) or not lives(owner.pid, owner.start_ticks)
    first = None
    while True:
        try:
            now, beat = read_owner(path), path.stat().st_mtime
            # By the clock of the file system, which may be another than this host's.
            os.utime(claim)
            age = claim.stat().st_mtime - beat
        except OSError:  # It was released just now, or is a link to nothing.
            return False
        if path.is_dir():  # Which no file can replace.
            return False
        if now is None or now.token != owner.token or first not in (None, beat):
            return False  # It lived until now.
        if age > STALE_AFTER_SECONDS:
            return True
        if first is None:
            line = f"{path.parent} is in use by {owner}; looking for a sign of it, {STALE_AFTER_SECONDS:.0f} s at most"
            print(f"note: {line}", file=sys.stderr)
        first = beat
        stopping.check()
        time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))


def _clean(path: Path) -> None:
    """Removes what killed claimants of a lock have left beside it."""
    for left in path.parent.glob(f"{path.name}.*"):
        owner = read_owner(left)
        if (
            owner is not None
            and owner.place == this_system()
            and not lives(owner.pid, owner.start_ticks)
        ):
            left.unlink(missing_ok=True)

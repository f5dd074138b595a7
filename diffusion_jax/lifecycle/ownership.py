"""Who owns a folder: a lock file that a kill of its owner leaves, and that is taken over once the owner is gone.

A claim is a file of its own, written whole and then linked to the name of the lock, which succeeds once: that is
atomic on NFS too. Who takes over a lock first claims a lock named by the contents of the old one, so of several that
found the same owner gone one replaces the file; that second lock is taken over likewise if its owner dies.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular

NAME = "lock.json"
HEARTBEAT_SECONDS = 5.0  # Seconds between two signs of life.
STALE_AFTER_SECONDS = (
    60.0  # An owner that cannot be looked for is taken to be gone after as long without one.
)
WRITE_WAIT_SECONDS = 120.0  # Seconds to wait for one that only writes a file.
POLL_SECONDS = 0.05
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Owner(NamedTuple):
    """Who holds a lock.

    Attributes:
      what: What the process does.
      host: Its host's name.
      pid: Its number there.
      since: When it took the lock.
      place: Names the running system and the processes in which its number counts.
      start_ticks: When the process started, in the system's ticks; None where the system does not say.
      token: Names the contents of the file.
    """

    what: str
    host: str
    pid: int
    since: str
    place: str = ""
    start_ticks: int | None = None
    token: str = ""

    def __str__(self) -> str:
        return f"{self.what} on {self.host}, pid {self.pid}, since {self.since}"


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
            file.write(_claim(self._what))
        try:
            taken_from = _take(self.path, claim, time.monotonic() + wait)
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        finally:
            claim.unlink(missing_ok=True)
        self._heart.start()
        if taken_from is not None:
            line = f"note: {taken_from} left {self.path} behind and is gone; taken over"
            print(line, file=sys.stderr)
            _clean(self.path)

    def check(self) -> None:
        """Looks whether the file is still there and this process's.

        Raises:
          RunError: It is not: the folder was deleted or moved, or another process took it over.
        """
        if not self._is_mine():
            folder, other = self.path.parent, _read(self.path)
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


# ---- taking ---------------------------------------------------------------------------------------------------


def _take(path: Path, claim: Path, deadline: float) -> Owner | None:
    """Makes the claim the lock; returns the owner that it was taken over from, None if there was none.

    Raises:
      InputError: Its owner lives, also after the deadline.
    """
    while not _link(claim, path):
        stopping.check()
        owner = _read(path)
        if owner is None:  # Released just now.
            continue
        try:
            if not _is_gone(owner, path, claim):
                raise InputError(_in_use(owner, path))
            turn = path.with_name(f"{path.name}.{owner.token}")
            _take(turn, claim, time.monotonic())
            try:
                now = _read(path)
                if now is not None and now.token == owner.token:
                    ours = claim.with_name(f"{claim.name}.new")
                    _link(claim, ours)
                    os.replace(ours, path)
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
    known = owner.place == _place()
    advice = "wait until it is done, or stop it"
    sure = "" if known else f"; if that is gone, delete {path}"
    return f"{path.parent} is in use by {owner}: {advice}{sure}"


# ---- owners ---------------------------------------------------------------------------------------------------


def _claim(what: str) -> str:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    pid = os.getpid()
    owner = Owner(what, socket.gethostname(), pid, since, _place(), _start_ticks(pid))
    return json.dumps({**owner._asdict(), "token": os.urandom(8).hex()}) + "\n"


def _read(path: Path) -> Owner | None:
    """Returns who holds a lock, None if nobody does; of a damaged file an owner of whom nothing is known."""
    try:
        text = read_regular(path)
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        text = b""  # A link to nothing is there all the same.
    except OSError:  # A pipe, say.
        text = b""
    token = hashlib.sha256(text).hexdigest()[:16]
    try:
        owner = Owner(**{**json_text.parse_object(text), "token": token})
        words = (owner.what, owner.host, owner.since, owner.place)
        if (
            type(owner.pid) is int
            and 0 < owner.pid < 2**31
            and isinstance(owner.start_ticks, int | None)
            and all(isinstance(word, str) and word.isprintable() for word in words)
        ):
            return owner
    except (ValueError, TypeError):
        pass
    return Owner("an unknown command", "an unknown host", 0, "an unknown time", token=token)


def _is_gone(owner: Owner, path: Path, claim: Path) -> bool:
    """Whether the owner has ended; one that cannot be looked for, by its signs of life."""
    if owner.place == _place():
        return not _lives(owner.pid, owner.start_ticks)
    first = None
    while True:
        try:
            now, beat = _read(path), path.stat().st_mtime
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
        owner = _read(left)
        if (
            owner is not None
            and owner.place == _place()
            and not _lives(owner.pid, owner.start_ticks)
        ):
            left.unlink(missing_ok=True)


def _lives(pid: int, start_ticks: int | None) -> bool:
    """Whether a process of this system runs, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _start_ticks(pid)
    # Without a word from the system it may be another one of that number.
    return now != -1 and (start_ticks is None or now is None or now == start_ticks)


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, in ticks; None where the system does not say, -1 of one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def _place() -> str:
    """Names this start of the system and its name space of processes; just the host where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

"""Owner of a folder: the process named by its lock, and whether it is still alive."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular


class Owner(NamedTuple):
    """Process that holds a lock.

    Attributes:
      what: Description of the command.
      host: Name of its host.
      pid: Its process id.
      since: Time at which it took the lock.
      place: Identity of the running system and of its pid namespace.
      start_ticks: Start time of the process in clock ticks; None: unknown.
      folder: Folder in which the lock was created.
      token: Identity of the file's contents.
    """

    what: str
    host: str
    pid: int
    since: str
    place: str = ""
    start_ticks: int | None = None
    folder: str = ""
    token: str = ""

    def __str__(self) -> str:
        return f"{self.what} on {self.host}, pid {self.pid}, since {self.since}"


def claim_of(what: str, folder: Path) -> str:
    """Returns the text of a lock that names this process as the owner of a folder."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    pid = os.getpid()
    host, real = socket.gethostname(), os.path.realpath(folder)
    owner = Owner(what, host, pid, since, this_system(), start_ticks_of(pid), real)
    return json.dumps({**owner._asdict(), "token": os.urandom(8).hex()}) + "\n"


def read_owner(path: Path) -> Owner | None:
    """Returns the owner of a lock, or None if there is no lock; for a damaged file, an unknown owner."""
    try:
        text = read_regular(path)
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        text = b""  # A dangling link exists all the same.
    except OSError:  # E.g. a pipe.
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
            and isinstance(owner.folder, str)
        ):
            return owner
    except (ValueError, TypeError):
        pass
    return Owner("an unknown command", "an unknown host", 0, "an unknown time", token=token)


def is_copy(owner: Owner, path: Path) -> bool:
    """Whether the lock was copied along with its folder, so that its owner owns another folder."""
    with contextlib.suppress(OSError, ValueError):
        return bool(owner.folder) and not os.path.samefile(owner.folder, path.parent)
    return False


def lives(pid: int, start_ticks: int | None) -> bool:
    """Whether the process of this id runs on this system and has that start time."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = start_ticks_of(pid)
    # If the start time is unknown, this may be another process with the same id.
    return now != -1 and (start_ticks is None or now is None or now == start_ticks)


def start_ticks_of(pid: int) -> int | None:
    """Returns the start time of a process in clock ticks; None: unknown, -1: the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def this_system() -> str:
    """Returns an identity of this boot of the system and of its pid namespace; just the host name if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

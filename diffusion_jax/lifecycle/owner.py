"""Who an owner of a folder is: a process of a system, as its lock says, and whether it still lives."""

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
    """Who holds a lock.

    Attributes:
      what: What the process does.
      host: Its host's name.
      pid: Its number there.
      since: When it took the lock.
      place: Names the running system and the processes in which its number counts.
      start_ticks: When the process started, in the system's ticks; None where the system does not say.
      folder: Where the lock was made.
      token: Names the contents of the file.
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
    """Returns what a lock says of this process as the owner of a folder."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    pid = os.getpid()
    host, real = socket.gethostname(), os.path.realpath(folder)
    owner = Owner(what, host, pid, since, this_system(), start_ticks_of(pid), real)
    return json.dumps({**owner._asdict(), "token": os.urandom(8).hex()}) + "\n"


def read_owner(path: Path) -> Owner | None:
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
            and isinstance(owner.folder, str)
        ):
            return owner
    except (ValueError, TypeError):
        pass
    return Owner("an unknown command", "an unknown host", 0, "an unknown time", token=token)


def is_copy(owner: Owner, path: Path) -> bool:
    """Whether the lock was copied along with its folder from another one, which its owner still has."""
    with contextlib.suppress(OSError, ValueError):
        return bool(owner.folder) and not os.path.samefile(owner.folder, path.parent)
    return False


def lives(pid: int, start_ticks: int | None) -> bool:
    """Whether a process of this system runs, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = start_ticks_of(pid)
    # Without a word from the system it may be another one of that number.
    return now != -1 and (start_ticks is None or now is None or now == start_ticks)


def start_ticks_of(pid: int) -> int | None:
    """Returns when a process started, in ticks; None where the system does not say, -1 of one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def this_system() -> str:
    """Names this start of the system and its name space of processes; just the host where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

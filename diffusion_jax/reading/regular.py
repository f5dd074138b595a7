"""Opening of regular files only: a pipe or a device in a file's place would block its reader forever."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
      OSError: It does not exist, cannot be read, or is a folder, a pipe, a socket or a device.
    """
    return os.fdopen(descriptor_of(path, os.O_RDONLY), "rb")


def descriptor_of(path: str | os.PathLike[str], flags: int) -> int:
    """Returns a file descriptor.

    Args:
      path: The file.
      flags: Flags of `os.open`; `O_CREAT` creates a missing file.

    Raises:
      OSError: It cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def only_regular(folder: str | os.PathLike[str]) -> None:
    """Checks that a folder tree holds only regular files, before a library opens it.

    Raises:
      OSError: The tree has a pipe, a socket, a device or a dangling link, or cannot be listed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat().st_mode
            if stat.S_ISDIR(mode):
                only_regular(entry.path)
            elif not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", entry.path)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the contents of a regular file; see `open_regular`."""
    with open_regular(Path(path)) as file:
        return file.read()

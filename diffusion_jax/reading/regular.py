"""Regular files alone: a pipe or a device in a file's place would keep its reader waiting for ever."""

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
      OSError: It is not there or cannot be read, or it is a folder, a pipe, a socket or a device.
    """
    return os.fdopen(descriptor_of(path, os.O_RDONLY), "rb")


def descriptor_of(path: str | os.PathLike[str], flags: int) -> int:
    """Returns a descriptor of a file.

    Args:
      path: The file.
      flags: How `os.open` opens it; with `O_CREAT`, it makes one that is not there.

    Raises:
      OSError: It cannot be opened so, or it is a folder, a pipe, a socket or a device.
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
    """Looks at all that lies in a folder, and in those below it, before a library opens it.

    Raises:
      OSError: A pipe, a socket, a device, or a link that cannot be followed is there, or the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat().st_mode
            if stat.S_ISDIR(mode):
                only_regular(entry.path)
            elif not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", entry.path)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the contents of a file, as `open_regular` opens it."""
    with open_regular(Path(path)) as file:
        return file.read()

"""A workdir in a bucket: the command works in a local folder, copied from there before and to there while it runs.

Files go to the bucket whole, when they have changed, every half minute and at the end, also when a signal stops the
command. The checkpoints of a training and the compiled programs are not among them: these are written to the bucket by
themselves.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from diffusion_jax import addresses
from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.lifecycle.ownership import NAME as LOCK
from diffusion_jax.parallel import distributed
from diffusion_jax.writing.atomic import UNFINISHED

SECONDS = 30.0  # Between two looks for files that changed.
CHECKPOINTS, COMPILED = "checkpoints", "compiled"  # Folders that are written there and not here.
_PAUSES = (1.0, 5.0)  # Seconds between the tries at the end.
_NOTE = "owner.txt"  # Process and address of a local folder, beside it.
_MARK = ".copied"  # In the folder: without it, the folder is not what it was.
_OF_EVERY_PROCESS = "profile"  # A folder whose files have other names in each process.

_Stamp = tuple[int, int]  # Size and time of the last change in nanoseconds.


@contextlib.contextmanager
def local_folder(address: str, cache: Path) -> Iterator[Path]:
    """Yields a folder with the files of a workdir in a bucket, and keeps the bucket up to date with it.

    Of several processes each has a folder of its own, and the first writes to the bucket. Nothing keeps two commands
    from one workdir there, as a lock does on a file system.

    Args:
      address: The workdir, such as gs://bucket/run.
      cache: Folder of this machine in which the local one is made; it is deleted when all of it is in the bucket.

    Raises:
      InputError: The address is not one of a bucket that can be read, or the local folder cannot be made.
      RunError: What the command has written cannot be copied.
    """
    remote = addresses.resolve(address)
    try:
        parent = _new_folder(cache / "workdirs", remote.name, address)
    except OSError as error:
        raise InputError(f"cannot make a folder in {cache}: {reason(error)}") from error
    mirror = _Mirror(remote, parent / remote.name)
    try:
        mirror.pull()
    except Exception as error:  # A library's own, of the bucket.
        shutil.rmtree(parent)
        raise InputError(f"cannot read --workdir={address}: {reason(error)}") from error
    addresses.stand_in(mirror.folder, address)
    ended = threading.Event()
    thread = threading.Thread(target=mirror.push_until, args=(ended,), daemon=True)
    thread.start()
    try:
        with _named(str(mirror.folder), address.rstrip("/")):
            yield mirror.folder
    except BaseException:
        ended.set()
        thread.join()
        try:
            mirror.push_last(address)
        except RunError as failure:  # What stopped the command is what it reports.
            warnings.warn(str(failure), stacklevel=1)
        else:
            shutil.rmtree(parent)
        raise
    ended.set()
    thread.join()
    mirror.push_last(address)
    shutil.rmtree(parent)


def _new_folder(folder: Path, name: str, address: str) -> Path:
    """Makes a folder of this process, and warns of those that killed ones have left for the same address."""
    folder.mkdir(parents=True, exist_ok=True)
    for note in folder.glob(f"*/{_NOTE}"):
        with contextlib.suppress(OSError, ValueError):
            process, _, of = note.read_text().partition(" ")
            if of == address and not Path(f"/proc/{int(process)}").exists():
                warnings.warn(
                    f"a command that was killed has left {note.parent / name}, of which the last half minute may be "
                    f"missing in {address}; it is not read, and may be deleted",
                    stacklevel=1,
                )
    made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    (made / _NOTE).write_text(f"{os.getpid()} {address}")
    return made


@contextlib.contextmanager
def _named(folder: str, address: str) -> Iterator[None]:
    """Has what is printed name the address in place of the folder, which is deleted at the end."""
    streams = _Renaming(sys.stdout, folder, address), _Renaming(sys.stderr, folder, address)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield


class _Renaming(io.TextIOBase):
    """A stream that writes one text in place of another."""

    def __init__(self, stream: Any, old: str, new: str) -> None:
        self._stream, self._old, self._new = stream, old, new

    def write(self, text: str) -> int:
        self._stream.write(text.replace(self._old, self._new))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding


class _Mirror:
    """Copies of files between a folder and a bucket, those that have changed alone."""

    def __init__(self, remote: epath.Path, folder: Path) -> None:
        self._remote, self.folder = remote, folder
        self._pushed: dict[str, _Stamp] = {}

    def pull(self) -> None:
        """Makes the folder, a copy of the bucket's."""
        self.folder.mkdir()
        (self.folder / _MARK).touch()
        if self._remote.exists():
            self._pull(self._remote, self.folder)
        self._pushed = self._stamps()

    def _pull(self, remote: epath.Path, folder: Path) -> None:
        for source in remote.iterdir():
            if source.name in (CHECKPOINTS, COMPILED) and remote == self._remote:
                continue
            target = folder / source.name
            if source.is_dir():
                target.mkdir()
                self._pull(source, target)
            elif _counts(target):
                target.write_bytes(source.read_bytes())

    def _stamps(self) -> dict[str, _Stamp]:
        """Returns the files and their stamps.

        Raises:
          OSError: The folder is not there, or cannot be listed: that says nothing of the bucket's files.
        """
        (self.folder / _MARK).stat()
        stamps = {}
        for folder, _, names in os.walk(self.folder, onerror=_reraise):
            for name in names:
                path = Path(folder) / name
                inner = path.relative_to(self.folder)
                with contextlib.suppress(FileNotFoundError):  # Deleted in the meantime.
                    if inner.parts[0] not in (CHECKPOINTS, COMPILED) and _counts(path):
                        stat = path.stat()
                        stamps[inner.as_posix()] = stat.st_size, stat.st_mtime_ns
        return dict(sorted(stamps.items()))

    def push(self) -> None:
        """Copies what has changed since the last time, and deletes what is gone.

        The first of several processes does it for all, but for files that each of them writes.

        Raises:
          Exception: The first one of those that single files raise; the other files are copied.
        """
        now, failures = self._stamps(), []
        is_another = distributed.is_another_than_first()
        for name in sorted({*now, *self._pushed}):
            if is_another and not name.startswith(f"{_OF_EVERY_PROCESS}/"):
                continue
            if self._pushed.get(name) == now.get(name):
                continue
            try:
                self._push(name, now.get(name))
            except Exception as error:  # A library's own, of the bucket.
                failures.append(error)
        if failures:
            raise failures[0]

    def _push(self, name: str, stamp: _Stamp | None) -> None:
        target = self._remote / name
        if stamp is None:
            target.unlink(missing_ok=True)
            del self._pushed[name]
            return
        with contextlib.suppress(FileNotFoundError):
            contents = (self.folder / name).read_bytes()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(contents)
            self._pushed[name] = stamp

    def push_until(self, ended: threading.Event) -> None:
        """Does so every `SECONDS`, and warns once of a failure; the next time may succeed."""
        warned = False
        while not ended.wait(SECONDS):
            try:
                self.push()
            except Exception as error:  # A library's own, of the bucket.
                if not warned:
                    warnings.warn(
                        f"cannot write to {self._remote}: {reason(error)}; trying again",
                        stacklevel=1,
                    )
                warned = True

    def push_last(self, address: str) -> None:
        """Does so at the end, with a few tries; what stays here is named."""
        for pause in (*_PAUSES, None):
            try:
                return self.push()
            except Exception as error:
                if pause is None:
                    raise RunError(
                        f"cannot write to --workdir={address}: {reason(error)}; what is missing there is in "
                        f"{self.folder}"
                    ) from error
                time.sleep(pause)


def _reraise(error: OSError) -> None:
    raise error


def _counts(path: Path) -> bool:
    """Whether a file is part of a run: not a lock, a probe or an unfinished one."""
    return not (
        path.name == LOCK
        or path.name.startswith(".")
        or any(part.endswith(UNFINISHED) for part in path.parts)
    )

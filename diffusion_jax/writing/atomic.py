"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".part"  # Suffix of unfinished files and folders.


@contextlib.contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path for a file or a folder, which becomes `path` at the end of the block.

    It replaces what exists. A failure, such as a full disk, leaves the old contents and nothing else; so does a kill,
    except for the unfinished file, which the next write replaces.

    Args:
      path: Final path; its folder is created.
      shared: Whether other processes may write it at the same time. The unfinished file then has its own temporary
        folder, which a kill leaves behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            yield unfinished
            os.replace(unfinished, path)
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    remove(unfinished)
    try:
        yield unfinished
        if path.is_dir():
            remove(path)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(unfinished)
        raise


def remove_unfinished(folder: Path) -> None:
    """Removes unfinished files of killed commands from a folder that this command owns."""
    for unfinished in folder.glob(f"*{UNFINISHED}"):
        remove(unfinished)


def remove(path: Path) -> None:
    """Removes a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

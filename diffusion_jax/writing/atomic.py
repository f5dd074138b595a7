"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".part"  # Ends the name of what is being written.


@contextlib.contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields another name to write a file or a folder to; at the end of the block it becomes `path`.

    It replaces what is there. A failure, such as a full disk, leaves what was there and nothing else; so does a kill,
    but for the unfinished file, which the next write replaces.

    Args:
      path: What is to appear; its folder is made.
      shared: Whether other processes may write it at the same time. The unfinished file then lies under its own name
        in a temporary folder, which a kill leaves behind.
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
    """Removes what killed commands began to write in a folder that belongs to this one."""
    for unfinished in folder.glob(f"*{UNFINISHED}"):
        remove(unfinished)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Files and folders that appear whole or not at all, in folders that are still this command's."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.lifecycle import ownership


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields another name to write to; at the end of the block that becomes `path`, and replaces what is there.

    A kill leaves what was there, and the unfinished file, which the next write replaces; a failure, say a full disk,
    leaves nothing behind.

    Raises:
      RunError: The folder that this command owns was deleted or taken over: nothing of it is made anew.
    """
    ownership.check()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
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


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

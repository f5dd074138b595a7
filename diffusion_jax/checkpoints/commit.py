"""How one checkpoint comes into being: prepared, written, and committed by one rename.

Everything is complete and on the disk in a temporary directory before that is renamed. With
several processes, process 0 alone makes, renames and removes directories.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from diffusion_jax.checkpoints import arrays
from diffusion_jax.checkpoints.integrity import sync_directory, write_manifest
from diffusion_jax.errors import RunError, reason

META = "meta.json"
TEMPORARY = ".tmp-"
SPARE_BYTES = 16 << 20


def prepare(final: Path, temporary: Path, names: Iterable[str], num_bytes: int) -> bool:
    """Makes the temporary directory, or returns False as `final` is already there; sweeps up leftovers.

    Raises:
      OSError: It cannot be made, or the disk has not clearly more than `num_bytes` free.
    """
    for leftover in temporary.parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if final.exists():
        return False
    temporary.parent.mkdir(parents=True, exist_ok=True)
    # A disk that fills up later is an error too, but TensorStore's threads then print tracebacks.
    if shutil.disk_usage(temporary.parent).free < num_bytes + num_bytes // 8 + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in names:
        (temporary / name).mkdir(parents=True)
    return True


def commit(final: Path, temporary: Path, names: Iterable[str], payload: str) -> None:
    """Turns the temporary directory, with all arrays written, into the checkpoint `final`.

    Raises:
      OSError: The disk is full or fails.
    """
    arrays.finish_writing(temporary, names)
    (temporary / META).write_text(payload)
    write_manifest(temporary)
    temporary.rename(final)
    sync_directory(final.parent)


@contextlib.contextmanager
def failure_named(final: Path, temporary: Path) -> Iterator[None]:
    """Removes what was written if the save fails, and says which save it was."""
    try:
        yield
    except Exception as error:
        if jax.process_index() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot save checkpoint {final}: {reason(error)}; earlier checkpoints are intact"
        ) from error

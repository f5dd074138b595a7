"""How one checkpoint comes into being: prepared, written, and committed by one rename.

Everything is complete and on the disk in a temporary directory before that is renamed. With
several processes each runs the same code; process 0 alone makes, renames and removes directories.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from diffusion_jax import checkpoint_arrays
from diffusion_jax.checkpoint_integrity import sync_directory, write_manifest
from diffusion_jax.errors import RunError

ARRAYS = "state"
META = "meta.json"
TEMPORARY = ".tmp-"
BARRIER_TIMEOUT_S = 1200
SPARE_BYTES = 16 << 20


def prepare(final: Path, temporary: Path, num_bytes: int) -> None:
    """Makes the temporary directory, unless `final` is already there; sweeps up leftovers.

    Raises:
      OSError: It cannot be made, or the disk has not clearly more than `num_bytes` free.
    """
    for leftover in temporary.parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if final.exists():
        return
    # Nothing may be there after a failure: it is how the other processes know.
    temporary.parent.mkdir(parents=True, exist_ok=True)
    # A disk that fills up later is an error too, but TensorStore's threads then print tracebacks.
    if shutil.disk_usage(temporary.parent).free < num_bytes + num_bytes // 8 + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (temporary / ARRAYS).mkdir(parents=True)


def mark_written(temporary: Path) -> None:
    """Tells process 0 that this process has written all its arrays."""
    _marker(temporary, jax.process_index()).touch()


def commit(final: Path, temporary: Path, payload: str) -> None:
    """Turns the temporary directory, with all arrays written, into the checkpoint `final`.

    Raises:
      RunError: A process has not written its part.
      OSError: The disk is full or fails.
    """
    for process in range(jax.process_count()):
        if not _marker(temporary, process).exists():
            raise RunError(f"process {process} could not write its part")
        _marker(temporary, process).unlink()
    checkpoint_arrays.finish_writing(temporary / ARRAYS)
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


def reason(error: BaseException) -> str:
    """Returns the cause in one line: the operating system's words where it gave any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if os.strerror(errno.ENOSPC) in str(error):
        return os.strerror(errno.ENOSPC).lower()
    return (str(error) or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def barrier_after(name: str) -> Iterator[None]:
    """Waits for all processes at the end of the block, also if it fails, so that none is stranded.

    The coordination service keeps the barrier: in a background thread, a device computation could
    cross those of the training.
    """
    try:
        yield
    finally:
        if jax.process_count() > 1:
            from orbax.checkpoint import multihost

            multihost.get_barrier_sync_fn()(key=name, timeout_ms=BARRIER_TIMEOUT_S * 1000)


def _marker(temporary: Path, process: int) -> Path:
    return temporary / f"written-{process}"

"""What a folder of checkpoints needs where it lies, on a file system or in a bucket."""

import os
import shutil
import sys

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.errors import InputError, disk_full, reason
from diffusion_jax.parallel.distributed import first_decides


def make_folder(path: epath.Path) -> None:
    """Makes a folder; in a bucket, where they are but the names of objects, an object that gives it one."""
    path.mkdir(exist_ok=True)
    if not is_local(path):
        (path / ".folder").write_text("")


def free_bytes(path: epath.Path) -> int:
    """Returns the free space where a folder is; a bucket is never full."""
    return shutil.disk_usage(path).free if is_local(path) else sys.maxsize


def check_writable(directory: epath.Path) -> None:
    """Makes the folder, writes into it and removes that again; process 0 does it for all.

    Raises:
      InputError: It cannot; the line names the folder or address.
    """

    def probe() -> None:
        try:
            if is_local(directory):
                directory.mkdir(parents=True, exist_ok=True)
            made = directory / f".probe-{os.urandom(8).hex()}"  # Others may probe at once.
            made.write_text("")
            made.unlink()
        except Exception as error:  # Each kind of bucket has its own.
            if disk_full(error):
                return  # Said when a checkpoint is saved: a run that is done has none to save.
            kind = "" if is_local(directory) else f"{type(error).__name__}: "
            raise InputError(
                f"cannot write checkpoints to {directory}: {kind}{reason(error)}"
            ) from error

    first_decides("probe the folder of checkpoints", probe)

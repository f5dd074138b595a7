"""Where checkpoints can be: a folder of a file system, or a bucket."""

import os
import shutil
import sys

from etils import epath

from diffusion_jax.errors import InputError, disk_full, reason
from diffusion_jax.parallel.distributed import first_decides


def place(directory: str | os.PathLike[str]) -> epath.Path:
    """Returns a folder or an address such as gs://bucket/run as an absolute path."""
    path = epath.Path(directory)
    return epath.Path(os.path.abspath(path)) if is_local(path) else path


def is_local(path: epath.Path) -> bool:
    """Whether the path is on a file system, which can rename and sync; else it is in a bucket."""
    return "://" not in str(path)


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
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".probe").write_text("")
            (directory / ".probe").unlink()
        except Exception as error:  # Each kind of bucket has its own.
            if disk_full(error):
                return  # A run that is done can still be looked at.
            raise InputError(f"cannot write checkpoints to {directory}: {_why(error)}") from error

    first_decides("probe the checkpoints' folder", probe)


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return 'gs:// needs the package gcsfs: pip install "diffusion_jax[gcs]"'
    return reason(error)

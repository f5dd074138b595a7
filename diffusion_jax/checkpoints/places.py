"""What a folder of checkpoints needs where it lies, on a file system or in a bucket."""

import shutil
import sys

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.errors import InputError, disk_full, reason
from diffusion_jax.parallel.distributed import first_decides

# What lies in a checkpoint, in itself and in the folder of a part.
_OF_CHECKPOINTS = {"manifest.json", "meta.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
_OF_PARTS = {"_METADATA", "_sharding", "array_metadatas", "manifest.ocdbt"}


def is_step(path: epath.Path) -> bool:
    """Whether a folder has a step's name."""
    return path.name.isdecimal() and path.name == str(int(path.name))


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is a checkpoint, perhaps a damaged or unfinished one, and not a folder of something else."""
    try:
        inside = list(path.iterdir())
        return any(entry.name in _OF_CHECKPOINTS for entry in inside) or any(
            name.name in _OF_PARTS or name.name.startswith("ocdbt.process_")
            for entry in inside
            if entry.is_dir()
            for name in entry.iterdir()
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


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
            (directory / ".probe").write_text("")
            (directory / ".probe").unlink()
        except Exception as error:  # Each kind of bucket has its own.
            if disk_full(error):
                return  # Said when a checkpoint is saved: a run that is done has none to save.
            kind = "" if is_local(directory) else f"{type(error).__name__}: "
            raise InputError(
                f"cannot write checkpoints to {directory}: {kind}{reason(error)}"
            ) from error

    first_decides("probe the folder of checkpoints", probe)

"""What a folder of checkpoints needs where it lies, on a file system or in a bucket."""

import shutil
import sys

from etils import epath

from diffusion_jax.addresses import is_local


def make_folder(path: epath.Path) -> None:
    """Makes a folder; in a bucket, where they are but the names of objects, an object that gives it one."""
    path.mkdir(exist_ok=True)
    if not is_local(path):
        (path / ".folder").write_text("")


def free_bytes(path: epath.Path) -> int:
    """Returns the free space where a folder is; a bucket is never full."""
    return shutil.disk_usage(path).free if is_local(path) else sys.maxsize

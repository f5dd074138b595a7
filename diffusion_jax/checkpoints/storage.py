"""Storage of checkpoints: folders and free space, on a file system or in a bucket."""

from __future__ import annotations

import shutil
import sys

from etils import epath

from diffusion_jax.addresses import is_local


def make_folder(path: epath.Path) -> None:
    """Creates a folder; in a bucket, where folders are only name prefixes, by an object under that name."""
    path.mkdir(exist_ok=True)
    if not is_local(path):
        (path / ".folder").write_text("")


def free_bytes(path: epath.Path) -> int:
    """Returns the free space in bytes at a folder; a bucket is never full."""
    return shutil.disk_usage(path).free if is_local(path) else sys.maxsize

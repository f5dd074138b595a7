"""Local copies of data in buckets; data is only ever read from the local disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from diffusion_jax import addresses
from diffusion_jax.data.locked import locked
from diffusion_jax.errors import InputError, RunError, disk_full, reason
from diffusion_jax.lifecycle import stopping
from diffusion_jax.writing.atomic import atomic_write

THREADS = 8


def local_copy(address: str, root: Path, only: str = "") -> Path:
    """Returns a local copy of the files below an address, made at first use and whenever the listing has changed.

    The folder appears under its name only when all files have the sizes in the listing. If several processes of one
    machine call this, one of them copies and the others wait.

    Args:
      address: Address of a folder, such as gs://bucket/data.
      root: Folder that holds the copies.
      only: Sub-folder to copy; "": all of it.

    Raises:
      InputError: The address cannot be read or holds no files.
      RunError: The disk is full.
    """
    source = addresses.resolve(address)
    try:
        sizes = {path.relative_to(source).as_posix(): size for path, size in _files(source / only)}
    except Exception as error:  # Every kind of bucket raises its own errors.
        raise InputError(f"cannot read {source / only}: {reason(error)}") from error
    if not sizes:
        raise InputError(f"there are no files at {source / only}")
    listing = "\n".join(f"{name} {size}" for name, size in sorted(sizes.items()))
    copy = root / hashlib.sha256(f"{address}\n{listing}".encode()).hexdigest()[:16]
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{copy.name}.lock"):
        if not copy.exists():
            _copy(source, copy, sizes)
    return copy


def _files(folder: epath.Path) -> Iterator[tuple[epath.Path, int]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path, path.stat().length


def _copy(source: epath.Path, copy: Path, sizes: dict[str, int]) -> None:
    def one(name: str) -> None:
        target = unfinished / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (source / name).open("rb") as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, 2**24)
        if target.stat().st_size != sizes[name]:
            raise RunError(
                f"{source / name}: read {target.stat().st_size} of {sizes[name]} bytes; try again"
            )

    try:
        with atomic_write(copy) as unfinished, ThreadPoolExecutor(THREADS) as pool:
            try:
                for _ in pool.map(one, sizes):
                    stopping.check()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Do not wait for copies that have not begun.
                raise
    except OSError as error:
        if disk_full(error):
            raise RunError(f"cannot copy {source} to {copy.parent}: {reason(error)}") from error
        raise InputError(f"cannot copy {source} to {copy.parent}: {reason(error)}") from error

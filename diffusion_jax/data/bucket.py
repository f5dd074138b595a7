"""A copy of what lies in a bucket on this machine's own disk, from which alone data are read."""

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
    """Returns a folder with the files below an address, copied the first time and whenever the listing has changed.

    The folder appears under its name only when all files are there with the sizes of the listing. Of several
    processes on one machine, one copies, and the others wait for it.

    Args:
      address: Such as gs://bucket/data.
      root: Folder for such copies.
      only: Copies this folder of it alone.

    Raises:
      InputError: The address cannot be read, or nothing is there.
      RunError: The disk is full.
    """
    source = addresses.resolve(address)
    try:
        sizes = {path.relative_to(source).as_posix(): size for path, size in _files(source / only)}
    except Exception as error:  # Each kind of bucket has its own.
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
                f"{source / name}: {target.stat().st_size} bytes were read of {sizes[name]}; try again"
            )

    try:
        with atomic_write(copy) as unfinished, ThreadPoolExecutor(THREADS) as pool:
            try:
                for _ in pool.map(one, sizes):
                    stopping.check()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Those that have not begun are not waited for.
                raise
    except OSError as error:
        if disk_full(error):
            raise RunError(f"cannot copy {source} to {copy.parent}: {reason(error)}") from error
        raise InputError(f"cannot copy {source} to {copy.parent}: {reason(error)}") from error

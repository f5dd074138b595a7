"""The integrity manifest of a checkpoint: size and SHA-256 of every file, checked before use.

Orbax returns wrong arrays without an error after a flipped bit in a data file, so each checkpoint
directory, on a file system or in a bucket, holds a `manifest.json` of our own. Its text is canonical:
the one `json.dumps` form of its content. A checkpoint is sound if what its files are equals what the
manifest says, and its text is canonical, which covers damage to the manifest itself as well.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from etils import epath

from diffusion_jax.addresses import is_local
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import open_regular

MANIFEST = "manifest.json"
TIMES = "_CHECKPOINT_METADATA"

Entry = dict[str, int | str]


def write_manifest(directory: epath.Path) -> None:
    """Writes the manifest of all files under `directory`, and syncs everything to the disk.

    Orbax's record of the step's times, which it changes when it commits the step, is not in it.

    Raises:
      OSError: A file cannot be read or written, for example because the disk is full.
    """
    files, folders = _walk(directory)
    named = [file for file in files if file != directory / TIMES]
    names = [file.relative_to(directory).as_posix() for file in named]
    with _pool() as pool:
        entries = dict(zip(names, pool.map(_entry, named), strict=True))
    (directory / MANIFEST).write_bytes(_render(entries))
    if is_local(directory):
        for path in [*files, directory / MANIFEST, *folders]:
            sync(path)


def find_damage(directory: epath.Path, only: Sequence[str] | None = None) -> str | None:
    """Returns what is wrong with a checkpoint directory in a few words, or None if it is sound.

    Args:
      directory: Directory that `write_manifest` has sealed. Files added later are ignored.
      only: Files and folders to check; the others may be damaged or missing.
    """
    try:
        stored = read(directory / MANIFEST)
    except OSError as error:
        return f"{MANIFEST}: {error.strerror}"
    try:
        files = json_text.parse_object(stored)["files"]
        intact = _render(files) == stored
        intact &= all(set(entry) == {"sha256", "size"} for entry in files.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        intact, files = False, {}
    if not intact:
        return f"{MANIFEST}: damaged"
    names = [name for name in sorted(files) if only is None or _is_in(name, only)]
    with _pool() as pool:
        wrong = pool.map(lambda name: _damage(directory / name, files[name]), names)
        return next((f"{n}: {what}" for n, what in zip(names, wrong, strict=True) if what), None)


def read(path: epath.Path) -> bytes:
    """Returns the contents of a file of a checkpoint, or raises an OSError."""
    with _open(path) as file:
        return file.read()


def _open(path: epath.Path) -> IO[bytes]:
    return open_regular(path) if is_local(path) else path.open("rb")


def _walk(folder: epath.Path) -> tuple[list[epath.Path], list[epath.Path]]:
    """Returns all files under a folder, and all folders; `epath`'s own walk names a bucket's wrongly."""
    files, folders = [], [folder]
    for path in folder.iterdir():
        more = _walk(path) if path.is_dir() else ([path], [])
        files += more[0]
        folders += more[1]
    return files, folders


def _is_in(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def sync(path: epath.Path) -> None:
    """Makes a file, or the names in a folder, so also a rename into it, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _render(files: dict[str, Entry]) -> bytes:
    return (json.dumps({"files": files}, indent=1, sort_keys=True) + "\n").encode()


def _pool() -> ThreadPoolExecutor:
    """`hashlib` releases the GIL, and so does a bucket's answer that is waited for."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _entry(path: epath.Path) -> Entry:
    with _open(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
        return {"sha256": sha256, "size": file.tell()}


def _damage(path: epath.Path, expected: Entry) -> str | None:
    try:
        found = _entry(path)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if found["size"] != expected["size"]:
        return f"{found['size']} bytes instead of {expected['size']}"
    return None if found == expected else "wrong checksum"

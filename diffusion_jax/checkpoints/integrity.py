"""Integrity manifest of a checkpoint: size and SHA-256 of every file, checked before use.

Orbax returns wrong arrays without an error after a flipped bit in a data file, so each checkpoint
directory, on a file system or in a bucket, holds our own `manifest.json`. Its text is canonical: the
`json.dumps` form of its content. A checkpoint is sound if its files match the manifest and the text
is canonical, which covers damage to the manifest itself.
"""

from __future__ import annotations

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
    """Writes the manifest of all files under `directory` and syncs everything to disk.

    Orbax's record of the step's times is excluded, since Orbax changes it when it commits the step.

    Raises:
      OSError: A file cannot be read or written, for instance because the disk is full.
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
    """Returns a short description of the damage to a checkpoint directory, or None if it is sound.

    Args:
      directory: Directory with a manifest by `write_manifest`. Files added later are ignored.
      only: Files and folders to check; others may be damaged or missing. None: all.
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
    """Returns the contents of a checkpoint's file, or raises an OSError."""
    with _open(path) as file:
        return file.read()


def _open(path: epath.Path) -> IO[bytes]:
    return open_regular(path) if is_local(path) else path.open("rb")


def _walk(folder: epath.Path) -> tuple[list[epath.Path], list[epath.Path]]:
    """Returns all files and all folders under a folder; `epath`'s own walk returns wrong names for buckets."""
    files, folders = [], [folder]
    for path in folder.iterdir():
        more = _walk(path) if path.is_dir() else ([path], [])
        files += more[0]
        folders += more[1]
    return files, folders


def _is_in(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def sync(path: epath.Path) -> None:
    """Syncs a file, or a folder's entries (including renames into it), to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _render(files: dict[str, Entry]) -> bytes:
    return (json.dumps({"files": files}, indent=1, sort_keys=True) + "\n").encode()


def _pool() -> ThreadPoolExecutor:
    """Returns a thread pool; `hashlib` and waits for a bucket release the GIL."""
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

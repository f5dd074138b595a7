"""The integrity manifest of a checkpoint: size and SHA-256 of every file, checked before use.

Orbax returns wrong arrays without an error after a flipped bit in a data file, so each checkpoint
directory holds a `manifest.json` of our own. Its text is canonical: the one `json.dumps` form of
its content. A checkpoint is sound if the manifest rebuilt from the files equals the stored one
byte for byte, which covers damage to the manifest itself as well.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"

Entry = dict[str, int | str]


def write_manifest(directory: Path) -> None:
    """Writes the manifest of all files under `directory`, and syncs everything to the disk.

    Raises:
      OSError: A file cannot be read or written, for example because the disk is full.
    """
    names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    content = _render(_entries(directory, names, sync=True))
    with open(directory / MANIFEST, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for folder in [p for p in directory.rglob("*") if p.is_dir()] + [directory]:
        sync_directory(folder)


def find_damage(directory: Path, only: Sequence[str] | None = None) -> str | None:
    """Returns what is wrong with a checkpoint directory in a few words, or None if it is sound.

    Args:
      directory: Directory that `write_manifest` has sealed. Files added later are ignored.
      only: Files and folders to check; the others may be damaged or missing.
    """
    try:
        stored = (directory / MANIFEST).read_bytes()
    except OSError as error:
        return f"{MANIFEST}: {error.strerror}"
    try:
        files = json.loads(stored)["files"]
        intact = _render(files) == stored
        sizes = {name: int(entry["size"]) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        intact, files, sizes = False, {}, {}
    if not intact:
        return f"{MANIFEST}: damaged"
    names = [name for name in sorted(files) if only is None or _is_in(name, only)]
    for name in names:
        try:
            size = (directory / name).stat().st_size
        except (OSError, ValueError) as error:
            return f"{name}: {getattr(error, 'strerror', 'not a file name')}"
        if size != sizes[name]:
            return f"{name}: {size} bytes instead of {sizes[name]}"
    try:
        found = _entries(directory, names)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    wrong = [name for name in names if found[name] != files[name]]
    return f"{wrong[0]}: wrong checksum" if wrong else None


def _is_in(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory, so also a rename into it, survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _render(files: dict[str, Entry]) -> bytes:
    return (json.dumps({"files": files}, indent=1, sort_keys=True) + "\n").encode()


def _entries(directory: Path, names: Sequence[str], *, sync: bool = False) -> dict[str, Entry]:
    """Returns size and SHA-256 of each named file; `hashlib` releases the GIL meanwhile."""

    def entry(name: str) -> Entry:
        with open(directory / name, "rb") as file:
            if sync:
                os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return {"sha256": sha256, "size": file.tell()}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))

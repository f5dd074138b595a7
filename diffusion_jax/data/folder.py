"""Listings of picture folders: names of the pictures in a fixed order, and the files that are skipped."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data import picture
from diffusion_jax.data.sources.base import digest_of
from diffusion_jax.errors import InputError, reason
from diffusion_jax.lifecycle import stopping

NAMED = 3
PassedOver = dict[str, list[str]]  # Names by kind of file.


@dataclasses.dataclass(frozen=True)
class Listing:
    """The pictures in a folder, recognized by their suffixes; no file is opened.

    Attributes:
      folder: The folder.
      names: Names of the pictures within the folder, sorted part by part.
      digest: Digest of their paths, sizes and modification times.
      passed_over: Names of all other entries by kind, such as ".txt files".
    """

    folder: Path
    names: list[str]
    digest: str
    passed_over: PassedOver

    def note(self) -> str | None:
        """Returns a line that counts and names the skipped entries; None if there are none."""
        if not self.passed_over:
            return None
        return f"{len(self.names)} images are found in {shown(str(self.folder))}; {self.passed_over_in_words()}"

    def passed_over_in_words(self) -> str:
        """Returns the skipped entries, counted and named by kind."""
        kinds = sorted(self.passed_over.items(), key=lambda item: -len(item[1]))
        counts = ", ".join(f"{kind}: {len(names)} ({some(names)})" for kind, names in kinds)
        return f"passed over: {counts}"


def pictures_in(folder: Path, field: str, *, deep: bool = True) -> Listing:
    """Lists the files in a folder that have a picture's suffix.

    Args:
      folder: The folder.
      field: Name of the setting that names the folder, for errors.
      deep: Whether to list sub-folders, including linked ones, rather than skip them.

    Raises:
      InputError: A folder cannot be listed: its pictures would be missing, and classes would be numbered without it.
    """
    found: list[tuple[str, int, int]] = []  # (name, size, time)
    path = str(folder)
    passed_over: PassedOver = collections.defaultdict(list)
    empty: set[str] = set()  # Top-level folders, which would have been classes.
    for name, entry in _walk(folder, field, deep, passed_over):
        if entry is None:
            empty.update([name] if os.sep not in name else [])
        elif isinstance(kind := _kind(entry, field), str):
            passed_over[kind].append(name)
        else:
            found.append((name, kind.st_size, kind.st_mtime_ns))
    empty -= {name.partition(os.sep)[0] for name, _, _ in found}
    if empty := empty.difference(*passed_over.values()):
        passed_over["folders without images"] = sorted(empty)
    found.sort(key=lambda file: file[0].split(os.sep))
    names = [name for name, _, _ in found]
    digest = digest_of((f"{path}/{name}", size, time) for name, size, time in found)
    return Listing(folder, names, digest, dict(passed_over))


def _walk(
    folder: Path, field: str, deep: bool, passed_over: PassedOver
) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
    """Yields (name, entry) for each file and (name, None) for each folder."""
    seen: set[str] = set()
    todo = [""]
    while todo:
        path = os.path.join(folder, within := todo.pop())
        # A link may lead back to a folder above it.
        if (real := os.path.realpath(path)) in seen:
            passed_over["folders listed under another name"].append(within)
            continue
        seen.add(real)
        inner, before = [], f"{within}{os.sep}" if within else ""
        stopping.check()
        for entry in _entries(path, field):
            name = before + entry.name
            if entry.name.startswith("."):
                passed_over["hidden files"].append(name)
            elif not _is_folder(entry):
                yield name, entry
            elif deep:
                inner.append(name)
                yield name, None
            else:
                passed_over["folders"].append(name)
        todo += reversed(inner)


def _entries(path: str, field: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{field}: cannot list {shown(path)}: {reason(error)}; make it readable, or move it away"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A cycle of links.
        return False


def _kind(entry: os.DirEntry[str], field: str) -> os.stat_result | str:
    """Returns the status of a picture, or the kind of any other entry."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in picture.SUFFIXES:
        if entry.is_symlink() and not os.path.exists(entry.path):
            return "links to nothing"
        return f"{shown(suffix)} files" if suffix else "files without a suffix"
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return "links to nothing"
        if error.errno == errno.ENAMETOOLONG:
            return "files with too long a name"
        raise InputError(
            f"{field}: cannot look at {shown(entry.path)}: {reason(error)}; make its folder readable, or move it away"
        ) from error
    return status if stat.S_ISREG(status.st_mode) else "pipes or devices"


def shown(name: str) -> str:
    """Returns a printable name: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Sequence[str], limit: int = NAMED) -> str:
    """Returns the first names as a printable list."""
    return ", ".join(map(shown, names[:limit])) + (", ..." if len(names) > limit else "")


def natural(name: str) -> tuple[list[str | int], str]:
    """Returns a sort key that orders numbers in names by value: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name

"""Headers of many picture files, read once and cached in a file with a checksum."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffusion_jax.data import image_file, picture
from diffusion_jax.data.folder import shown
from diffusion_jax.errors import InputError, reason
from diffusion_jax.lifecycle import stopping
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.writing.atomic import atomic_write

A = TypeVar("A")
B = TypeVar("B")

CHUNK = 64
GRAY, COLOR, UNREADABLE = "gcx"


class Headers(NamedTuple):
    """What the headers of files say.

    Attributes:
      kinds: Kinds of files, one letter per file: GRAY, COLOR, UNREADABLE.
      left_out: Reasons for unreadable files, by name.
      sizes: "WIDTHxHEIGHT" -> number of readable files of that size, and the name of the first.
    """

    kinds: str
    left_out: dict[str, str]
    sizes: dict[str, list[Any]]


def headers(folder: Path, names: list[str], index: Path) -> Headers:
    """Returns the headers of the files, read at the first call only.

    Reading millions of headers takes minutes, so they are cached in the file `index`, which is rewritten if damaged.

    Raises:
      InputError: The system cannot open a file.
    """
    kept = _kept(index)
    if kept is not None and len(kept.kinds) == len(names):
        return kept
    from tqdm import tqdm

    found = in_threads(lambda name: look(folder / name), names)
    shown_as = tqdm(found, "looking at files", len(names), disable=not sys.stderr.isatty())
    kinds, left_out, sizes = [], {}, dict[str, list[Any]]()
    for name, (said, size) in zip(names, shown_as, strict=True):
        if said in (GRAY, COLOR):
            sizes.setdefault(size, [0, name])[0] += 1
        else:
            left_out[name] = said
        kinds.append(UNREADABLE if name in left_out else said)
    _keep(index, made := Headers("".join(kinds), left_out, sizes))
    return made


def look(path: Path) -> tuple[str, str]:
    """Returns GRAY or COLOR, or the reason why a picture cannot be used; and its size, "WIDTHxHEIGHT"."""
    try:
        with picture.header(path) as image:
            gray, deep = image_file.is_gray(image), picture.is_deep(image)
            size = f"{image.width}x{image.height}"
        if deep:  # Only the pixels show whether the 16 bits hold fewer.
            picture.load(path)
    except picture.Unreadable as error:
        return error.kind, ""
    except OSError as error:
        raise cannot_read(path, error) from error
    return GRAY if gray else COLOR, size


def cannot_read(path: Path, error: OSError) -> InputError:
    """Returns the error for an unreadable file: files once left out stay so, so missing permissions must raise."""
    return InputError(
        f"cannot read {shown(str(path))}: {reason(error)}; make it readable, or move it away"
    )


def in_threads(function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """Yields function(item) for each item in order, computed by threads a few at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            stopping.check()
            yield from pool.map(function, items[start : start + CHUNK])


def _kept(index: Path) -> Headers | None:
    try:
        checksum, _, contents = read_regular(index).partition(b"\n")
    except OSError:  # It does not exist, or is a pipe.
        return None
    if checksum != hashlib.sha256(contents).hexdigest().encode():
        return None
    return Headers(*json.loads(contents))


def _keep(index: Path, made: Headers) -> None:
    contents = json.dumps(made).encode()
    checksum = hashlib.sha256(contents).hexdigest().encode()
    with atomic_write(index, shared=True) as unfinished:
        unfinished.write_bytes(checksum + b"\n" + contents)

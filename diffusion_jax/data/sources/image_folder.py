"""Any tree of PNG, JPEG and WebP files, cropped and resized to squares of one size."""

import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int, Int64, UInt8

from diffusion_jax.data import image_file, picture
from diffusion_jax.data.sources.base import (
    Contents,
    InPlace,
    LabelledImage,
    Request,
    Source,
    existing_source,
    held_out,
    listing,
    refuse_options,
)
from diffusion_jax.data.split import Batch, Split
from diffusion_jax.errors import InputError, RunError, reason

A = TypeVar("A")
B = TypeVar("B")

CHUNK = 64
DAMAGED, GREY, COLOUR = range(3)  # What a file's header says.


@dataclasses.dataclass(frozen=True)
class _Images:
    """The readable images of a folder.

    Attributes:
      folder: The folder.
      size: Height and width to decode to.
      mode: Pillow's "L" or "RGB".
      class_names: Name of each class; empty if there are none.
      splits: For each split that is not empty, the names of its files within the folder and their labels.
      left_out: Names of the files whose header is damaged.
    """

    folder: Path
    size: int
    mode: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[list[str], Int64[np.ndarray, " n"]]]
    left_out: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, len(self.mode)


def find(request: Request) -> Source:
    """Returns the images below source_dir, at image_size; a class is a sub-folder of source_dir.

    There are classes if no image lies directly in source_dir. Of each, `test_fraction` is held
    out.
    """
    refuse_options(request, "image_folder")
    folder = existing_source(request, "image_folder")
    size = request.image_size
    if size is None or size < 1:
        raise InputError(f"data.image_size is {size}; image_folder needs a size of at least 1")
    names = image_names(folder)
    if not names:
        raise InputError(
            f"source_dir {str(folder)!r} holds no images ({', '.join(sorted(picture.SUFFIXES))})"
        )
    digest = listing([f"{folder}/{name}" for name in names])
    index = request.index_dir / f"image_folder-{digest[:16]}.npy"

    @functools.cache
    def images() -> _Images:
        return _sort_out(folder, names, _headers(folder, names, index), size, request.test_fraction)

    key = f"{digest} {size} {request.test_fraction}"
    return Source(key, lambda: _contents(images()), lambda: _in_place(images()))


def image_names(folder: Path) -> list[str]:
    """Returns the names within a folder of all image files below it in a fixed order, but no hidden ones."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A link may lead back to a folder above it.
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        within = "" if root == str(folder) else os.path.relpath(root, folder)
        found += [
            os.path.join(within, name)
            for name in names
            if os.path.splitext(name)[1].lower() in picture.SUFFIXES and not name.startswith(".")
        ]
    return sorted(found, key=lambda name: name.split(os.sep))


def _sort_out(
    folder: Path,
    names: list[str],
    headers: UInt8[np.ndarray, " n"],
    size: int,
    test_fraction: float,
) -> _Images:
    """Decides on classes, channels and splits."""
    readable = [name for name, header in zip(names, headers, strict=True) if header != DAMAGED]
    left_out = [names[i] for i in np.flatnonzero(headers == DAMAGED)]
    if not readable:
        raise InputError(f"none of the {len(names)} images in {str(folder)!r} can be read")
    classes, labels = np.empty(0, str), np.zeros(len(readable), np.int64)
    if all(os.sep in name for name in readable):
        top_folders = [name.split(os.sep)[0] for name in readable]
        classes, labels = np.unique(top_folders, return_inverse=True)
    test = held_out(labels, test_fraction)
    splits = {
        split: ([readable[i] for i in np.flatnonzero(rows)], labels[rows])
        for split, rows in {"train": ~test, "test": test}.items()
        if rows.any()
    }
    mode = "RGB" if COLOUR in headers else "L"
    return _Images(folder, size, mode, tuple(classes.tolist()), splits, left_out)


def _contents(images: _Images) -> Contents:
    left_out = list(images.left_out)
    splits = {name: _decode_all(images, *split, left_out) for name, split in images.splits.items()}
    num_images = sum(len(names) for names, _ in images.splits.values())
    return Contents(images.shape, images.class_names, num_images, splits, left_out)


def _decode_all(
    images: _Images, names: Sequence[str], labels: Int[np.ndarray, " n"], left_out: list[str]
) -> Iterator[LabelledImage]:
    """Yields the images in order, and adds the bad ones to left_out."""

    def decode(name: str) -> UInt8[np.ndarray, "size size c"] | None:
        try:
            return _decode(images, name)
        except (picture.Unreadable, OSError):
            return None

    pixels = _in_threads(decode, names)
    for name, label, image in zip(names, labels.tolist(), pixels, strict=True):
        if image is None:
            left_out.append(name)
        else:
            yield image, label


def _in_place(images: _Images) -> InPlace:
    return InPlace(
        {name: _split(images, *split) for name, split in images.splits.items()}, images.left_out
    )


def _split(images: _Images, names: list[str], labels: Int[np.ndarray, " n"]) -> Split:
    """Returns a split whose images are decoded as they are read, by threads."""

    def decode(name: str) -> UInt8[np.ndarray, "size size c"]:
        try:
            return _decode(images, name)
        except (picture.Unreadable, OSError) as error:
            raise RunError(
                f"{str(images.folder / name)!r} cannot be read ({reason(error)}); replace it, or move it away "
                "and resume with --allow_config_change"
            ) from error

    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        pixels = list(_in_threads(decode, [names[i] for i in indices]))
        image = np.stack(pixels) if pixels else np.empty((0, *images.shape), np.uint8)
        return {"image": image, "label": labels[indices].astype(np.int32)}

    return Split(len(names), images.shape, images.class_names, read)


def _decode(images: _Images, name: str) -> UInt8[np.ndarray, "size size c"]:
    return image_file.decode(images.folder / name, images.size, images.mode)


def _headers(folder: Path, names: list[str], index: Path) -> UInt8[np.ndarray, " n"]:
    """Returns DAMAGED, GREY or COLOUR of each file; looks into the files the first time only.

    With millions of files that takes minutes, so the answer is kept in the file `index`.
    """
    try:
        headers = np.load(index, allow_pickle=False)
        if headers.shape == (len(names),) and headers.dtype == np.uint8:
            return headers
    except (OSError, ValueError, EOFError):  # It is not there, or is damaged.
        pass
    from tqdm import tqdm

    found = _in_threads(lambda name: _header(folder / name), names)
    bar = tqdm(found, "looking at files", len(names), disable=not sys.stderr.isatty())
    headers = np.fromiter(bar, np.uint8, len(names))
    index.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=index.parent) as part:
        np.save(Path(part) / index.name, headers)
        os.replace(Path(part) / index.name, index)  # Whole, or not at all.
    return headers


def _header(path: Path) -> int:
    try:
        with picture.header(path) as image:
            grey, deep = image_file.is_grey(image), picture.is_deep(image)
        if deep:  # Whether 16 bits hold fewer, only the pixels say.
            picture.load(path)
    except (picture.Unreadable, OSError):
        return DAMAGED
    return GREY if grey else COLOUR


def _in_threads(function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """Yields the function of each item in order, computed by threads a few at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            yield from pool.map(function, items[start : start + CHUNK])

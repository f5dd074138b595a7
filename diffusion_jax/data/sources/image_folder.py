"""Any tree of picture files, cropped and resized to squares of one size."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int, Int64, UInt8

from diffusion_jax.data import image_file, picture
from diffusion_jax.data.folder import NAMED, natural, pictures_in, shown, some
from diffusion_jax.data.headers import (
    COLOR,
    UNREADABLE,
    Headers,
    cannot_read,
    headers,
    in_threads,
)
from diffusion_jax.data.sources.base import (
    IMAGE_SIZE,
    SOURCE_DIR,
    TEST_FRACTION,
    Contents,
    InPlace,
    LabeledImage,
    Source,
    Storage,
    existing_folder,
    held_out,
)
from diffusion_jax.data.split import Batch, Split, count
from diffusion_jax.errors import InputError, RunError, reason

VERSION = 2  # Version of the preparation; copies made by another version are not used.
MOST = 4  # Pictures that are enlarged more, or whose middle square is less than 1 / MOST of them, are told.


@dataclasses.dataclass(frozen=True)
class _Images:
    """The readable images of a folder.

    Attributes:
      folder: The folder.
      size: Height and width to decode to.
      mode: Pillow's "L" or "RGB".
      class_names: Name of each class; empty if there are no classes.
      splits: File names within the folder and labels of each non-empty split.
      left_out: Reason for each file that is left out, by its header.
    """

    folder: Path
    size: int
    mode: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[list[str], Int64[np.ndarray, " n"]]]
    left_out: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, len(self.mode)


def image_folder(
    storage: Storage,
    *,
    source_dir: Annotated[Path | None, SOURCE_DIR] = None,
    image_size: Annotated[int | None, IMAGE_SIZE] = None,
    test_fraction: Annotated[float, TEST_FRACTION] = 0.2,
) -> Source:
    """Returns the images below source_dir, resized to image_size; each sub-folder of source_dir is a class.

    There are classes only if no image lies directly in source_dir. `test_fraction` of each class is
    held out.
    """
    folder, size = existing_folder(source_dir, "image_folder"), image_size
    if size is None or size < 1:
        raise InputError(
            f"data.image_size is {'unset' if size is None else size}; image_folder needs a size of at least 1: "
            "--config.data.image_size=64"
        )
    found = pictures_in(folder, "data.source_dir")
    if not found.names:
        raise InputError(
            f"source_dir {shown(str(folder))!r} holds no images ({', '.join(sorted(picture.SUFFIXES))})"
            + (f": {found.note()}" if found.passed_over else "")
        )
    index = storage.indexes / f"image_folder-{found.digest[:16]}-{VERSION}-sizes"

    @functools.cache
    def images() -> _Images:
        said = headers(folder, found.names, index)
        if unfit := _unfit(said.sizes, size):
            warnings.warn(f"image_folder: {unfit}", stacklevel=2)
        return _sort_out(folder, found.names, said, size, test_fraction)

    key = f"{VERSION} {found.digest} {size} {test_fraction}"
    contents, in_place = (lambda: _contents(images())), (lambda: _in_place(images()))
    return Source(key, contents, in_place, found.note(), _beside_folders(found.names))


def _beside_folders(names: list[str]) -> str | None:
    """Returns a message if images beside the folders keep these from being classes, or None."""
    beside = [name for name in names if os.sep not in name]
    folders = {name.split(os.sep)[0] for name in names if os.sep in name}
    if not beside or not folders:
        return None
    return (
        f"there are no classes, since beside the folders of images ({some(sorted(folders))}) lie {len(beside)} images "
        f"({some(beside)}); move these away, or into a folder, if the folders are classes"
    )


def _unfit(sizes: Mapping[str, Sequence[Any]], size: int) -> str | None:
    """Returns a message if pictures show little as squares of a size, or None.

    Args:
      sizes: As in `Headers`.
      size: Side of the squares.
    """
    unfit = []
    for said, (number, first) in sizes.items():
        short, long = sorted(map(int, said.split("x")))
        if MOST * short < max(size, long):
            unfit.append((number, f"{shown(first)} is {said}"))
    if not unfit:
        return None
    total, of_all = (sum(number for number, _ in found) for found in (unfit, sizes.values()))
    return (
        f"{total} of {of_all} images have sides of less than a quarter of data.image_size={size}, or are more than "
        f"four times as long as wide, and will show little: {', '.join(said for _, said in unfit[:NAMED])}"
    )


def _sort_out(
    folder: Path, names: list[str], said: Headers, size: int, test_fraction: float
) -> _Images:
    """Determines classes, channels and splits."""
    readable = [name for name, kind in zip(names, said.kinds, strict=True) if kind != UNREADABLE]
    if not readable:
        first, why = next(iter(said.left_out.items()))
        raise InputError(
            f"none of the {len(names)} images in {shown(str(folder))!r} can be read; {shown(first)}: {why}"
        )
    classes, labels = (), np.zeros(len(readable), np.int64)
    if all(os.sep in name for name in readable):
        # A class keeps its number even if none of its images can be read.
        folders = sorted({name.split(os.sep)[0] for name in names if os.sep in name}, key=natural)
        classes, number = _distinct(folders), {name: i for i, name in enumerate(folders)}
        labels = np.array([number[name.split(os.sep)[0]] for name in readable], np.int64)
    test = held_out(labels, test_fraction)
    splits = {
        split: ([readable[i] for i in np.flatnonzero(rows)], labels[rows])
        for split, rows in {"train": ~test, "test": test}.items()
        if rows.any()
    }
    mode = "RGB" if COLOR in said.kinds else "L"
    return _Images(folder, size, mode, classes, splits, said.left_out)


def _distinct(folders: list[str]) -> tuple[str, ...]:
    """Returns the printable names of classes, which must be distinct."""
    names = tuple(shown(name).strip() for name in folders)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(
                f"data.source_dir holds two classes that are written {name!r}; rename one"
            )
    return names


def _contents(images: _Images) -> Contents:
    left_out = dict(images.left_out)
    splits = {name: _decode_all(images, *split, left_out) for name, split in images.splits.items()}
    num_images = sum(len(names) for names, _ in images.splits.values())
    return Contents(images.shape, images.class_names, num_images, splits, left_out)


def _decode_all(
    images: _Images, names: Sequence[str], labels: Int[np.ndarray, " n"], left_out: dict[str, str]
) -> Iterator[LabeledImage]:
    """Yields the images in order, and adds unreadable ones to left_out."""

    def decode(name: str) -> UInt8[np.ndarray, "size size c"] | str:
        try:
            return _decode(images, name)
        except picture.Unreadable as error:
            return error.kind
        except OSError as error:
            raise cannot_read(images.folder / name, error) from error

    pixels = in_threads(decode, names)
    for name, label, image in zip(names, labels.tolist(), pixels, strict=True):
        if isinstance(image, str):
            left_out[name] = image
        else:
            yield image, label


def _in_place(images: _Images) -> InPlace:
    return InPlace(
        {name: _split(images, *split) for name, split in images.splits.items()}, images.left_out
    )


def _split(images: _Images, names: list[str], labels: Int[np.ndarray, " n"]) -> Split:
    """Returns a split of images that are decoded by threads when read."""

    def decode(name: str) -> UInt8[np.ndarray, "size size c"]:
        try:
            return _decode(images, name)
        except (picture.Unreadable, OSError) as error:
            raise RunError(
                f"{shown(str(images.folder / name))!r} cannot be read ({reason(error)}); replace it, or move it away "
                "and resume with --allow_config_change"
            ) from error

    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        pixels = list(in_threads(decode, [names[i] for i in indices]))
        image = np.stack(pixels) if pixels else np.empty((0, *images.shape), np.uint8)
        return {"image": image, "label": labels[indices].astype(np.int32)}

    counts = count(labels, len(images.class_names))
    sizes = {name: len(files) for name, (files, _) in images.splits.items()}
    return Split(len(names), images.shape, images.class_names, read, counts, sizes)


def _decode(images: _Images, name: str) -> UInt8[np.ndarray, "size size c"]:
    return image_file.decode(images.folder / name, images.size, images.mode)

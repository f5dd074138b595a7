"""Sources of images: their contents, common options and shared helpers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from diffusion_jax.data.split import Split
from diffusion_jax.errors import InputError
from diffusion_jax.options import Option, kinds
from diffusion_jax.options.kinds import FilePath

LabeledImage = tuple[UInt8[np.ndarray, "h w c"], int]


SOURCE_DIR = Option(
    FilePath("a path"),
    "folder or archive of the images; unset: the source's own search or download",
    on_resume=True,
)
IMAGE_SIZE = Option(
    kinds.Int(1, 16_384),
    "side to crop and resize to, required by image_folder; unset: the images' own size",
)
TEST_FRACTION = Option(kinds.Float(0, 0.9), "held-out fraction, for data sets without a test split")


class Storage(NamedTuple):
    """Cache folders of a source, for downloads and for results that are slow to compute."""

    downloads: Path
    indexes: Path


@dataclasses.dataclass(frozen=True)
class Contents:
    """The images of a source, iterated over once to be written as TFDS data.

    Attributes:
      image_shape: (H, W, C) of every image.
      class_names: Name of each class; empty if there are no labels.
      num_images: Number of images in all splits, including damaged ones that will be left out.
      splits: Images and labels, in order, of each non-empty split.
      left_out: Reason for each unreadable file; complete once all splits have been read.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_images: int
    splits: Mapping[str, Iterable[LabeledImage]]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InPlace:
    """The images in the source's own files, decoded when read.

    Attributes:
      splits: The non-empty splits.
      left_out: Reason for each file that is known to be unreadable.
    """

    splits: dict[str, Split]
    left_out: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source found on this machine.

    Attributes:
      key: Everything that decides the contents; a prepared copy with an equal key is reused.
      read: Reads the contents; slow, and not called if there is a prepared copy.
      in_place: Opens the source's own files, for data sets too large to copy; None: not supported.
      note: Message to the user about the files that were found; None: no message.
      no_classes: Message if the images turn out to have no classes; None: no message.
    """

    key: str
    read: Callable[[], Contents]
    in_place: Callable[[], InPlace] | None = None
    note: str | None = None
    no_classes: str | None = None


def check_size(image_size: int | None, name: str, size: int) -> None:
    """Raises an InputError if image_size is set to another size than that of the source's images."""
    if image_size not in (None, size):
        raise InputError(
            f"image_size is {image_size}, but {name} holds {size}x{size} images; "
            f"leave it unset or set it to {size}"
        )


def existing_source(source_dir: Path | None, name: str) -> Path:
    """Returns the folder or file of a source, or raises an InputError if it is unset or missing."""
    if source_dir is None:
        raise InputError(
            f"data.source_dir is unset; {name} needs the folder that holds the images: "
            "--config.data.source_dir=FOLDER"
        )
    if not os.path.exists(source_dir):  # Path.exists raises if the name is too long.
        raise InputError(f"source_dir {str(source_dir)!r} does not exist")
    return source_dir


def existing_folder(source_dir: Path | None, name: str) -> Path:
    """Returns the folder of a source, or raises an InputError if it is unset, missing or a file."""
    folder = existing_source(source_dir, name)
    if not folder.is_dir():
        raise InputError(
            f"source_dir {str(folder)!r} is a file; {name} needs the folder that holds the images"
        )
    return folder


def listing(files: Sequence[str | Path]) -> str:
    """Returns a digest of files' paths, sizes and modification times."""
    found = ((file, os.stat(file)) for file in files)
    return digest_of((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def digest_of(files: Iterable[tuple[str, int, int]]) -> str:
    """Returns a digest of (path, size, modification time) triples; paths need not be UTF-8."""
    digest = hashlib.sha256()
    for file, size, time in files:
        digest.update(os.fsencode(f"{file}\0{size}\0{time}\n"))
    return digest.hexdigest()


def held_out(labels: Int[np.ndarray, " n"], test_fraction: float) -> Bool[np.ndarray, " n"]:
    """Returns the mask of test images of a fixed split, stratified by class to within one image.

    The images are put in a fixed random order, then sorted by class; every (1/test_fraction)-th in
    that order is a test image, round(n * test_fraction) in all. If no image of a class would be left
    to train on, its first one is not a test image.
    """
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; it must be at least 0 and below 1")
    order = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]
    steps = np.round(np.arange(len(labels) + 1) * test_fraction)
    mark = np.empty(len(labels), bool)
    mark[order] = np.diff(steps) > 0
    first = order[np.unique(labels[order], return_index=True)[1]]
    mark[first[~np.isin(labels[first], labels[~mark])]] = False
    return mark


def split_arrays(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> Iterable[LabeledImage]:
    """Yields pairs of image and label one by one."""
    return zip(images, labels.tolist(), strict=True)

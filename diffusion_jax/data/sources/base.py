"""What a source of images is: where it looks, what it finds, and helpers that sources share."""

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
from diffusion_jax.options.kinds import Text

LabeledImage = tuple[UInt8[np.ndarray, "h w c"], int]


SOURCE_DIR = Option(
    Text("a path"),
    "where the images or the archive lie; unset: where the source finds or puts them",
    on_resume=True,
)
IMAGE_SIZE = Option(
    kinds.Int(1, 16_384),
    "side to crop and resize to; image_folder needs it; unset: as the images are",
)
TEST_FRACTION = Option(
    kinds.Float(0, 0.9), "share that is held out, where the set has no test split of its own"
)


class Storage(NamedTuple):
    """Folders of the cache in which a source keeps what it downloads, and what it finds out slowly."""

    downloads: Path
    indexes: Path


@dataclasses.dataclass(frozen=True)
class Contents:
    """The images themselves, handed over once, to be written in TFDS's form.

    Attributes:
      image_shape: (H, W, C) of every image.
      class_names: Name of each class; empty if there are no labels.
      num_images: Number of images of all splits; some may turn out to be damaged, and are left out.
      splits: For each split that is not empty, its images and labels in order.
      left_out: Why each file that could not be read was not; complete once all splits have been read.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_images: int
    splits: Mapping[str, Iterable[LabeledImage]]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InPlace:
    """The images as they lie in the source's own files, decoded as they are read.

    Attributes:
      splits: Each split that is not empty.
      left_out: Why each file that is known to be unreadable is so.
    """

    splits: dict[str, Split]
    left_out: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source as found on this machine.

    Attributes:
      key: All that decides the contents; a prepared copy of equal key is used as it is.
      read: Reads the contents; slow, and not called if there is a prepared copy.
      in_place: Opens the source's own files, for sets too large to copy; None where that cannot be.
      note: What the user should know of the files that were found; None if nothing.
      no_classes: What to say if the images turn out to have no classes; None if that is as it should be.
    """

    key: str
    read: Callable[[], Contents]
    in_place: Callable[[], InPlace] | None = None
    note: str | None = None
    no_classes: str | None = None


def check_size(image_size: int | None, name: str, size: int) -> None:
    """Raises an InputError for another size than that of all images of the source of this name."""
    if image_size not in (None, size):
        raise InputError(
            f"image_size is {image_size}, but {name} holds {size}x{size} images; "
            f"leave it unset or set it to {size}"
        )


def existing_source(source_dir: Path | None, name: str) -> Path:
    """Returns the folder or file that a source is to read, or raises an InputError if it is unset or missing."""
    if source_dir is None:
        raise InputError(f"data.source_dir is unset; {name} needs the folder that holds the images")
    if not os.path.exists(source_dir):  # Path.exists raises for a name that is too long.
        raise InputError(f"source_dir {str(source_dir)!r} does not exist")
    return source_dir


def listing(files: Sequence[str | Path]) -> str:
    """Returns a digest of files' paths, sizes and times: it changes when they do."""
    found = ((file, os.stat(file)) for file in files)
    return digest_of((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def digest_of(files: Iterable[tuple[str, int, int]]) -> str:
    """Returns a digest of paths, sizes and times; a path need not be UTF-8."""
    digest = hashlib.sha256()
    for file, size, time in files:
        digest.update(os.fsencode(f"{file}\0{size}\0{time}\n"))
    return digest.hexdigest()


def held_out(labels: Int[np.ndarray, " n"], test_fraction: float) -> Bool[np.ndarray, " n"]:
    """Marks the test images of a fixed split, in which each class has its share within one image.

    The images are put in a fixed random order, then sorted by class; every (1/test_fraction)-th of
    that order is a test image, so that round(n * test_fraction) are. Of a class of which no image
    would be left to train on, the first is no test image.
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
    """Yields the images of arrays one by one."""
    return zip(images, labels.tolist(), strict=True)

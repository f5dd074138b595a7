"""Splits of data sets: uint8 images and labels, read many at a time by index."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Int, Int32, Int64, Shaped, UInt8

from diffusion_jax.errors import InputError

READ_CHUNK = 1024
FINGERPRINT_IMAGES = 1024


class Batch(TypedDict):
    """Images and their labels; labels are 0 if the data set has none."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one shape that can be read in any order.

    Attributes:
      num_images: Number of images.
      image_shape: (H, W, C) of each image.
      class_names: Name of each class; empty if the images are not labeled.
      read: Function from the indices of any number of images (repeats allowed) to those images.
      class_counts: Number of images in each class; None: not counted.
      sizes: Number of images in each split of the data set, if it has several.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Callable[[Int64[np.ndarray, " b"]], Batch]
    class_counts: tuple[int, ...] | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the images are not labeled."""
        return len(self.class_names)

    @property
    def num_bytes(self) -> int:
        """Size of all images in memory."""
        return self.num_images * int(np.prod(self.image_shape))


def fingerprint(split: Split) -> str:
    """Returns a hash of 16 hexadecimal digits of a split's size and a sample of its contents.

    The sample is at most FINGERPRINT_IMAGES images with their labels, evenly spaced.
    """
    count = min(split.num_images, FINGERPRINT_IMAGES)
    batch = split.read(np.linspace(0, split.num_images - 1, count).astype(np.int64))
    digest = hashlib.sha256(repr((split.num_images, split.image_shape, split.class_names)).encode())
    digest.update(batch["image"].tobytes())
    digest.update(batch["label"].astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def content_digest(split: Split) -> str:
    """Returns a hash of 16 hexadecimal digits of all images of a split, with their labels and class names."""
    digest = hashlib.sha256(repr((split.num_images, split.image_shape, split.class_names)).encode())
    for first in range(0, split.num_images, READ_CHUNK):
        batch = split.read(np.arange(first, min(first + READ_CHUNK, split.num_images)))
        digest.update(np.ascontiguousarray(batch["image"]).tobytes())
        digest.update(batch["label"].astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def subset(split: Split, indices: Int64[np.ndarray, " n"]) -> Split:
    """Returns some images of a split, in this order.

    Args:
      split: All images.
      indices: Their numbers in `split`, each at most once or several times.
    """
    return dataclasses.replace(
        split,
        num_images=len(indices),
        read=lambda rows: split.read(indices[rows]),
        class_counts=None,
    )


def from_arrays(
    images: Shaped[np.ndarray, "*image_dims"],
    labels: Shaped[np.ndarray, "*label_dims"] | None = None,
    class_names: Sequence[str] = (),
) -> Split:
    """Returns a split of images and labels in host memory.

    Args:
      images: Integer pixels in {0, ..., 255}, N x H x W x C; uint8 arrays are not copied.
      labels: Class of each image, an integer >= 0; None: the images have no classes.
      class_names: Name of each class; empty: the classes are named by their numbers.

    Raises:
      InputError: The type, shape or range is wrong, or there are names without labels.

    Example:
      >>> pixels, labels = np.zeros((6, 8, 8, 1), np.uint8), np.array([0, 1, 1, 0, 0, 0])
      >>> split = dj.data.from_arrays(pixels, labels, ("cat", "dog"))
      >>> split.num_images, split.class_names, split.class_counts
      (6, ('cat', 'dog'), (4, 2))
    """
    pixels = _pixels(np.asarray(images))
    if labels is None:
        if class_names:
            raise InputError(f"class_names are given for {len(images)} images without labels")
        return _of_arrays(pixels, np.zeros(len(pixels), np.int32), ())
    classes = np.asarray(labels)
    if classes.shape != (len(pixels),) or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(
            f"labels have shape {classes.shape} and dtype {classes.dtype}; they must be {len(pixels)} integers, one per"
            " image"
        )
    low, high = _ends(classes)
    names = tuple(class_names) or tuple(map(str, range(high + 1)))
    if len(pixels) and not 0 <= low <= high < len(names):
        raise InputError(f"labels go from {low} to {high}; they must be in 0 to {len(names) - 1}")
    return _of_arrays(pixels, classes.astype(np.int32), names)


def _pixels(images: np.ndarray) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images as uint8, or raises an InputError."""
    if images.ndim != 4:
        raise InputError(
            f"images have shape {images.shape}; it must be N x H x W x C, with C = 1 for gray images"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.integer):
        raise InputError(
            f"images have dtype {images.dtype}; they must be integers, such as to_uint8(images) of floats in [-1, 1]"
        )
    low, high = _ends(images)
    if low < 0 or high > 255:
        raise InputError(f"pixels go from {low} to {high}; they must be in 0 to 255")
    return images.astype(np.uint8)


def _ends(values: np.ndarray) -> tuple[int, int]:
    """Returns the smallest and the largest value; (0, -1) if there are none."""
    return (int(values.min()), int(values.max())) if values.size else (0, -1)


def _of_arrays(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int32[np.ndarray, " n"],
    class_names: tuple[str, ...],
) -> Split:
    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        return {"image": images.take(indices, axis=0), "label": labels.take(indices)}

    height, width, channels = images.shape[1:]
    counts = count(labels, len(class_names))
    return Split(len(images), (height, width, channels), class_names, read, counts)


def count(labels: Int[np.ndarray, " n"], num_classes: int) -> tuple[int, ...]:
    """Returns the number of images in each class."""
    valid = labels[(labels >= 0) & (labels < num_classes)]
    return tuple(np.bincount(valid, minlength=num_classes).tolist()) if num_classes else ()


def in_memory(split: Split) -> Split:
    """Reads a whole split and returns a copy of it in host memory."""
    images = np.empty((split.num_images, *split.image_shape), np.uint8)
    labels = np.empty(split.num_images, np.int32)
    for start in range(0, split.num_images, READ_CHUNK):
        rows = np.arange(start, min(start + READ_CHUNK, split.num_images))
        batch = split.read(rows)
        images[rows], labels[rows] = batch["image"], batch["label"]
    return dataclasses.replace(_of_arrays(images, labels, split.class_names), sizes=split.sizes)

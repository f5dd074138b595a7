"""A split of a data set: uint8 images and labels, read many at a time by index."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import TypedDict

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

READ_CHUNK = 1024
FINGERPRINT_IMAGES = 1024


class Batch(TypedDict):
    """Images and their labels; the label is 0 where the set has none."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one shape that can be read in any order.

    Attributes:
      num_images: Number of images.
      image_shape: (H, W, C) of each image.
      class_names: Name of each class; empty if the images are not labelled.
      read: Takes the indices of any number of images (repeats allowed), returns those images.
      class_counts: Number of images of each class; None where they have not been counted.
      sizes: Number of images of each split of the data set, if it has several.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Callable[[Int64[np.ndarray, " b"]], Batch]
    class_counts: tuple[int, ...] | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the images are not labelled."""
        return len(self.class_names)

    @property
    def num_bytes(self) -> int:
        """Size of all images in memory."""
        return self.num_images * int(np.prod(self.image_shape))


def fingerprint(split: Split) -> str:
    """Returns 16 hexadecimal digits that name a split's contents: its size, and a sample of it.

    The sample is at most FINGERPRINT_IMAGES images with their labels, evenly spaced.
    """
    count = min(split.num_images, FINGERPRINT_IMAGES)
    batch = split.read(np.linspace(0, split.num_images - 1, count).astype(np.int64))
    digest = hashlib.sha256(repr((split.num_images, split.image_shape, split.class_names)).encode())
    digest.update(batch["image"].tobytes())
    digest.update(batch["label"].astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def from_arrays(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    class_names: tuple[str, ...] = (),
) -> Split:
    """Returns a split that holds its images in host memory."""
    labels = labels.astype(np.int32)

    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        return {"image": images.take(indices, axis=0), "label": labels.take(indices)}

    height, width, channels = images.shape[1:]
    counts = count(labels, len(class_names))
    return Split(len(images), (height, width, channels), class_names, read, counts)


def count(labels: Int[np.ndarray, " n"], num_classes: int) -> tuple[int, ...]:
    """Returns the number of images of each class."""
    valid = labels[(labels >= 0) & (labels < num_classes)]
    return tuple(np.bincount(valid, minlength=num_classes).tolist()) if num_classes else ()


def in_memory(split: Split) -> Split:
    """Reads a whole split once and returns one that holds it in host memory."""
    images = np.empty((split.num_images, *split.image_shape), np.uint8)
    labels = np.empty(split.num_images, np.int32)
    for start in range(0, split.num_images, READ_CHUNK):
        rows = np.arange(start, min(start + READ_CHUNK, split.num_images))
        batch = split.read(rows)
        images[rows], labels[rows] = batch["image"], batch["label"]
    return dataclasses.replace(from_arrays(images, labels, split.class_names), sizes=split.sizes)

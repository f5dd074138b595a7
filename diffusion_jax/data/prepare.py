"""Writes a source's images once as a TFDS data set of array_record files, without TensorFlow."""

import contextlib
import fcntl
import hashlib
import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.data.sources.base import Contents, LabelledImage, Source
from diffusion_jax.errors import InputError, RunError, disk_full

NAMED_FILES = 10
# Measured: up to 130 bytes an image and 140 kB a split, besides the pixels.
BYTES_PER_IMAGE = 144
BYTES_PER_SET = 2**20


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes any `Contents`: the image as raw bytes, the label as an integer."""

    name = "images"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, read: Callable[[], Contents], **kwargs: Any):
        self.contents = read()
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=self.contents.image_shape,
            dtype=np.uint8,
            encoding=tfds.features.Encoding.BYTES,
        )
        names = self.contents.class_names
        label = (
            tfds.features.ClassLabel(names=list(names))
            if names
            else tfds.features.Tensor(shape=(), dtype=np.int32)
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                class_names=self.contents.class_names, left_out=self.contents.left_out
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits = self.contents.splits
        return {name: self._generate_examples(name, splits[name]) for name in splits}

    def _generate_examples(
        self, split: str, images: Iterable[LabelledImage]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        row = -1
        for row, (image, label) in enumerate(images):
            yield row, {"image": image, "label": label}
        if row < 0:
            raise InputError(
                f"none of the {split} images can be read: "
                f"{', '.join(self.contents.left_out[:NAMED_FILES])}"
            )


def directory_of(name: str, source: Source, root: Path) -> Path:
    """Returns where the prepared source is, or would be, below root."""
    folder = root / f"{name}-{hashlib.sha256(source.key.encode()).hexdigest()[:16]}"
    return folder / ImageBuilder.name / str(ImageBuilder.VERSION)


def prepared(name: str, source: Source, root: Path) -> Path:
    """Returns the folder that holds the prepared source, and prepares it if it is not there.

    The folder appears under its name only when it is complete. Of several processes one prepares,
    and the others wait for it.

    Raises:
      InputError: A source that cannot be read, or a root that cannot be written.
      RunError: The disk is full, or has no room for as much as would be written.
    """
    directory = directory_of(name, source, root)
    if directory.exists():
        return directory
    folder = directory.parents[1]
    with explained(name, root):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not directory.exists():
                _write(name, source.read, folder)
    return directory


@contextlib.contextmanager
def explained(name: str, root: Path) -> Iterator[None]:
    """Says in one line what an OSError in preparing a source below root means; see `prepared`."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise RunError(f"no space is left in {str(root)!r} to prepare {name}") from error
        raise InputError(
            f"cannot prepare {name} in {str(root)!r} ({error}); set cache_dir or "
            "DIFFUSION_JAX_CACHE to a folder that can be written"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system takes back from a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_space(name: str, contents: Contents, folder: Path) -> None:
    """Raises a RunError if the prepared contents would not fit on the folder's disk."""
    num_bytes = math.prod(contents.image_shape) + BYTES_PER_IMAGE
    needed = contents.num_images * num_bytes + BYTES_PER_SET
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"preparing {name} needs {needed / 2**30:.3g} GiB, but {free / 2**30:.3g} GiB are free in "
            f"{str(folder.parent)!r}; make room, or set cache_dir or DIFFUSION_JAX_CACHE to a folder on "
            "another disk"
        )


def write_images(folder: Path, contents: Contents) -> None:
    """Writes images as a TFDS data set, images, of array_record files: tfds:images with this folder as source_dir.

    Raises:
      RunError: The disk has no room for them.
      OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(ImageBuilder.name, lambda: contents, folder)
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def _write(name: str, read: Callable[[], Contents], folder: Path) -> None:
    for stale in folder.glob("*/incomplete.*"):  # What a killed process left behind.
        shutil.rmtree(stale)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # In a log it would be lines of escape sequences.
    # TFDS prints sizes that it does not know; its progress bars go to stderr and stay.
    with contextlib.redirect_stdout(io.StringIO()), _system_errors():
        builder = ImageBuilder(read, data_dir=folder)
        _check_space(name, builder.contents, folder)
        builder.download_and_prepare(
            # Else TFDS asks the network whether somebody has prepared it already.
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raises an OSError where array_record says in a RuntimeError that the disk is full."""
    try:
        yield
    except RuntimeError as error:
        if number := disk_full(error):
            raise OSError(number, os.strerror(number)) from error
        raise

"""Preparation of a source as a TFDS data set of array_record files, without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from diffusion_jax.data.folder import some
from diffusion_jax.data.locked import locked
from diffusion_jax.data.sources.base import Contents, Source
from diffusion_jax.errors import InputError, RunError, disk_full
from diffusion_jax.lifecycle import stopping
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.writing.atomic import atomic_write

NAME, VERSION = "images", tfds.core.Version("1.0.0")
SEAL = "checksums.json"
NAMED_FILES = 10
CHUNK_BYTES, SHARD_BYTES = 2**24, 2**29  # In memory at once; in one file.
# Measured overhead: up to 130 bytes per image and 140 kB per split.
BYTES_PER_IMAGE = 144
BYTES_PER_SET = 2**20


def directory_in(folder: Path) -> Path:
    """Returns the folder of the data set within the folder that was passed to `write_images`."""
    return folder / NAME / str(VERSION)


def directory_of(name: str, source: Source, root: Path) -> Path:
    """Returns the folder of the prepared source below root, whether or not it exists."""
    folder = root / f"{name}-{hashlib.sha256(source.key.encode()).hexdigest()[:16]}"
    return directory_in(folder)


def prepared(name: str, source: Source, root: Path) -> Path:
    """Returns the folder of the prepared source, and prepares it first if necessary.

    The folder appears under its name only when it is complete. If several processes call this, one
    prepares the source and the others wait.

    Raises:
      InputError: The source cannot be read, or the root cannot be written.
      RunError: The disk is full, or too small for the prepared data.
    """
    directory = directory_of(name, source, root)
    if directory.exists():
        return directory
    folder = directory.parents[1]
    with explained(name, root):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            if not directory.exists():
                _write(name, source.read, folder)
    return directory


@contextlib.contextmanager
def explained(name: str, root: Path) -> Iterator[None]:
    """Converts an OSError while a source is prepared below root to an error of one line; see `prepared`."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise RunError(f"no space is left in {str(root)!r} to prepare {name}") from error
        raise InputError(
            f"cannot prepare {name} in {str(root)!r} ({error}); set cache_dir or "
            "DIFFUSION_JAX_CACHE to a folder that can be written"
        ) from error


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
    """Writes array_record files of a TFDS data set named "images": tfds:images with this folder as source_dir.

    Raises:
      RunError: The disk is full.
      OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(NAME, lambda: contents, folder)


def _write(name: str, read: Callable[[], Contents], folder: Path) -> None:
    with atomic_write(directory_in(folder)) as unfinished:
        contents = read()
        _check_space(name, contents, folder)
        unfinished.mkdir()
        # TFDS would print sizes that it does not know.
        with contextlib.redirect_stdout(io.StringIO()), _system_errors():
            _write_splits(name, contents, unfinished)


def _write_splits(name: str, contents: Contents, directory: Path) -> None:
    """Writes image by image: TFDS's builders would hold everything in memory, and need TensorFlow above 1 GB."""
    size = math.prod(contents.image_shape) + BYTES_PER_IMAGE
    counts: dict[str, list[int]] = {}
    writer = tfds.core.SequentialWriter(
        _info(contents, counts, directory),
        max_examples_per_shard=max(1, SHARD_BYTES // size),
        file_format="array_record",
    )
    for split, images in contents.splits.items():
        writer.initialize_splits([split])
        shown = tqdm(images, f"{name}: {split}", leave=False, disable=not sys.stderr.isatty())
        rows = ({"image": image, "label": label} for image, label in shown)
        any_written = False
        of_class = counts[split] = [0] * len(contents.class_names)
        while chunk := list(itertools.islice(rows, max(1, min(1000, CHUNK_BYTES // size)))):
            stopping.check()
            writer.add_examples({split: chunk})
            for row in chunk if of_class else ():
                of_class[row["label"]] += 1
            any_written = True
        if not any_written:
            raise InputError(
                f"none of the {split} images can be read: "
                f"{some(sorted(contents.left_out), NAMED_FILES)}"
            )
    writer.close_all()
    (directory / SEAL).write_text(json.dumps(_checksums(directory), indent=1) + "\n")


def check_seal(directory: Path) -> None:
    """Verifies the checksums of a prepared set's text files, which describe the format of its bytes.

    The data files need none: array_record has its own.

    Raises:
      OSError: A file does not exist or cannot be read.
      ValueError: A file has been changed.
    """
    try:
        sealed = json_text.parse_object(read_regular(directory / SEAL))
    except FileNotFoundError:  # Prepared by an earlier version, or by TFDS.
        return
    found = _checksums(directory)
    for name in sorted({*sealed, *found}):
        if sealed.get(name) != found.get(name):
            raise ValueError(f"{name} has been changed")


def _checksums(directory: Path) -> dict[str, str]:
    files = sorted({*directory.glob("*.json"), *directory.glob("*.txt")} - {directory / SEAL})
    return {path.name: hashlib.sha256(read_regular(path)).hexdigest() for path in files}


def _info(
    contents: Contents, counts: dict[str, list[int]], directory: Path
) -> tfds.core.DatasetInfo:
    """Returns TFDS's description of the data: the image as raw bytes, the label as an integer.

    Args:
      contents: Contents to write.
      counts: Number of images per class in each split, complete once all are written.
      directory: Folder to write to.
    """
    image = tfds.features.Tensor(
        shape=contents.image_shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )
    names = contents.class_names
    label = (
        tfds.features.ClassLabel(names=list(names))
        if names
        else tfds.features.Tensor(shape=(), dtype=np.int32)
    )
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME, version=VERSION, data_dir=str(directory), module_name=__name__
        ),
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(
            class_names=names, class_counts=counts, left_out=contents.left_out
        ),
    )


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raises an OSError if array_record reports a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if number := disk_full(error):
            raise OSError(number, os.strerror(number)) from error
        raise

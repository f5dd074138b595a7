"""CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images of 32x32x3, cifar-10-python.tar.gz."""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int64, UInt8

from diffusion_jax.data.sources.base import (
    IMAGE_SIZE,
    SOURCE_DIR,
    Contents,
    Source,
    Storage,
    check_size,
    existing_source,
    listing,
    split_arrays,
)
from diffusion_jax.data.sources.batch_pickle import load_batch
from diffusion_jax.data.sources.download import download
from diffusion_jax.errors import InputError, reason
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Text
from diffusion_jax.reading.regular import open_regular

FILE_NAME = "cifar-10-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/" + FILE_NAME
NUM_BYTES = 170_498_071
_MEMBER = re.compile(r"batches\.meta|test_batch|data_batch_[1-9][0-9]{0,3}")
_NUMBERED = re.compile(rb"training batch ([0-9]{1,4}) of ([0-9]{1,4})")
_LARGEST_MEMBER, _BLOCK = 1 << 30, 1 << 20
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


class _Bounded(gzip.GzipFile):
    """A gzip file that refuses huge reads: tarfile requests whatever length a header names, at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_MEMBER:
            raise tarfile.ReadError(f"one of its headers says that {size} bytes follow")
        return super().read(size)


def cifar10(
    storage: Storage,
    *,
    source_dir: Annotated[Path | None, SOURCE_DIR] = None,
    sha256: Annotated[
        str | None,
        Option(
            Text("a SHA-256 checksum"), "checksum of a repacked archive; unset: the published one"
        ),
    ] = None,
    image_size: Annotated[int | None, IMAGE_SIZE] = None,
) -> Source:
    """Returns the data set in source_dir (the archive or its folder), or else downloads it.

    The archive must have the published size and SHA-256, or the given SHA-256.
    """
    check_size(image_size, "cifar10", 32)
    sha256 = (sha256 or SHA256).lower()
    if source_dir is None:
        path = storage.downloads / FILE_NAME
        return Source(sha256, lambda: _read(_downloaded(path, sha256), sha256))
    path = existing_source(source_dir, "cifar10")
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            raise InputError(f"source_dir {str(path.parent)!r} holds no {FILE_NAME}")
    return Source(sha256 + listing([path]), lambda: _read(path, sha256))


def _downloaded(path: Path, sha256: str) -> Path:
    return download(URL, path, lambda part: check_file(part, sha256))


def check_file(path: Path, sha256: str) -> None:
    """Raises an InputError unless the file has the checksum and, if published, the size."""
    size = path.stat().st_size
    if sha256 == SHA256 and size != NUM_BYTES:
        raise InputError(
            f"{str(path)!r} has {size} bytes; the published file has {NUM_BYTES}. "
            "To use a repacked file, set sha256 to its SHA-256"
        )
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {reason(error)}") from error
    if found != sha256:
        raise InputError(f"{str(path)!r} has SHA-256 {found}; it must have {sha256}")


def _unpacked(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the batches in an archive by name."""
    batches: dict[str, dict[str, Any]] = {}
    try:
        with (
            open_regular(path) as packed,
            _Bounded(fileobj=packed) as whole,
            tarfile.open(fileobj=whole, mode="r:") as archive,
        ):
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and _MEMBER.fullmatch(name):
                    if name in batches:
                        raise InputError(f"{str(path)!r} holds {name} twice")
                    if member.size > _LARGEST_MEMBER:
                        raise InputError(f"{name} in {str(path)!r} has {member.size} bytes")
                    batches[name] = load_batch(file.read(), f"{name} in {str(path)!r}")
            while whole.read(
                _BLOCK
            ):  # Verify the checksum at the end, which tarfile does not read.
                pass
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error) as error:
        raise InputError(f"{str(path)!r} is not a whole tar.gz file ({error})") from error
    return batches


def _read(path: Path, sha256: str) -> Contents:
    check_file(path, sha256)
    batches = _unpacked(path)
    names = [f"data_batch_{i + 1}" for i in range(len(batches) - 2)]
    if not names or not {*names, "batches.meta", "test_batch"} <= batches.keys():
        raise InputError(
            f"{str(path)!r} holds {', '.join(sorted(batches)) or 'no batches'}; "
            "data_batch_1, ..., test_batch and batches.meta are needed"
        )
    try:
        classes = tuple(str(name, "ascii") for name in batches["batches.meta"]["label_names"])
        for i, name in enumerate(names, 1):
            _check_number(batches[name], i, len(names))
        train = [_arrays(batches[name], len(classes)) for name in names]
        test = _arrays(batches["test_batch"], len(classes))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the batches in {str(path)!r} are not CIFAR-10's ({error!r})") from error
    images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    splits = {"train": split_arrays(images, labels), "test": split_arrays(*test)}
    return Contents((32, 32, 3), classes, len(images) + len(test[0]), splits)


def _arrays(
    batch: dict[str, Any], num_classes: int
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, " n"]]:
    labels, data = batch["labels"], batch["data"]
    if not isinstance(labels, list) or not all(
        type(label) is int and 0 <= label < num_classes for label in labels
    ):
        raise ValueError(f"labels must be a list of numbers in 0 to {num_classes - 1}")
    # `load_batch` returns uint8 arrays only, but a list may hold any numbers.
    if not isinstance(data, np.ndarray) or data.shape != (len(labels), 3072) or not labels:
        raise ValueError(f"data must be an array of {len(labels)} rows of 3072 bytes")
    # Rows are channel-first.
    images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _check_number(batch: dict[str, Any], number: int, count: int) -> None:
    """Checks a training batch's label, such as "training batch 1 of 5", if any, against its name."""
    label = batch.get("batch_label", b"")
    said = _NUMBERED.search(label) if isinstance(label, bytes) else None
    if said and (int(said[1]), int(said[2])) != (number, count):
        raise ValueError(f"data_batch_{number} of {count} calls itself {str(label, 'latin1')!r}")

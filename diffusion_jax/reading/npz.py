"""Safe reader of .npz files: a damaged or foreign file raises a `ValueError` and cannot exhaust the memory.

NumPy's own reader raises a dozen kinds of errors, and trusts a header that claims terabytes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.reading.regular import open_regular

_MOST_OF_DEFLATE = 1040  # Above the largest compression ratio of deflate, 1,032.
_SLACK = 1 << 16
_START = b"PK\3\4"


class Header(NamedTuple):
    """Header of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns all arrays in a file; no part of it is used before its checksum is verified.

    Raises:
      OSError: The file does not exist, cannot be read, or is not a regular file.
      ValueError: The file is damaged, or holds anything but arrays of numbers, booleans and text.
    """
    with open_npz(path) as archive:
        return {name: _read(archive, name) for name in _names(archive)}


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Opens a file; converts all errors inside the context to those of `read_npz`."""
    with open_regular(path) as file, damage_named():
        # zipfile alone would accept a file with other data before its first entry.
        if file.read(len(_START)) != _START:
            raise ValueError("it is not an .npz file")
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > (
                _MOST_OF_DEFLATE * size + _SLACK
            ):
                raise ValueError("it claims more than it can hold")
            yield archive


@contextlib.contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Header, Any]]:
    """Opens one array of an archive; yields its header and its values as a stream of bytes.

    The checksum is verified at the end of the stream, which has as many bytes as the header says.
    """
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        header = _header(file)
        if header.dtype.hasobject:
            raise ValueError(f"{name} holds objects")
        if file.tell() + header.dtype.itemsize * math.prod(header.shape) != entry.file_size:
            raise ValueError(f"{name} is {header.shape} in {entry.file_size} bytes")
        yield header, file


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise ValueError("it holds something other than arrays")
    return [name.removesuffix(".npy") for name in names]


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with open_array(archive, name) as (header, file):
        flat = np.frombuffer(file.read(), header.dtype)
        if file.read(1):
            raise ValueError(f"{name} is longer than its header says")
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def _header(file: Any) -> Header:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array is of version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's parser warns about damaged headers.
        shape, fortran_order, dtype = readers[version](file)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array is of shape {shape}")
    return Header(shape, dtype, fortran_order)


@contextlib.contextmanager
def damage_named() -> Iterator[None]:
    """Converts errors of archive readers, other than the system's own, to a `ValueError`."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (
            None,  # Raised by a decompressor.
            errno.EINVAL,  # A seek to nowhere.
        ):
            raise
        # zipfile, zlib, struct and Python's own parser raise nearly anything.
        raise ValueError(f"it is damaged ({error or type(error).__name__})") from error

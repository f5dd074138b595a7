"""Arrays of an .npz file: what a damaged or foreign file holds is a `ValueError`, and takes no more memory than that.

NumPy's own reader raises a dozen kinds of errors, and believes a header that promises terabytes.
"""

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

_MOST_OF_DEFLATE = 1040  # No byte of it stands for more than 1,032.
_SLACK = 1 << 16
_START = b"PK\3\4"


class Header(NamedTuple):
    """What an array is, before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns all arrays of a file; no part of it is used before its checksum is right.

    Raises:
      OSError: The file is not there, cannot be read, or is not a regular file.
      ValueError: It is damaged, or holds anything but arrays of numbers, truth values and text.
    """
    with open_npz(path) as archive:
        return {name: _read(archive, name) for name in _names(archive)}


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Opens a file; see `read_npz`, whose errors it raises for whatever happens inside."""
    with open_regular(path) as file, damage_named():
        # zipfile alone would take a file with something before its first entry.
        if file.read(len(_START)) != _START:
            raise ValueError("it is not an .npz file")
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > (
                _MOST_OF_DEFLATE * size + _SLACK
            ):
                raise ValueError("it promises more than it can hold")
            yield archive


@contextlib.contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Header, Any]]:
    """Opens one array of an archive: what it is, and its values as bytes in order.

    Whoever reads to the end, where the checksum is compared, gets as many bytes as the header says.
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
        raise ValueError("it holds something else than arrays")
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
        warnings.simplefilter("ignore")  # Of what a damaged header looks like to Python's parser.
        shape, fortran_order, dtype = readers[version](file)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array is of shape {shape}")
    return Header(shape, dtype, fortran_order)


@contextlib.contextmanager
def damage_named() -> Iterator[None]:
    """Turns whatever a damaged archive makes its readers raise into a `ValueError`, but an error of the system."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (
            None,  # Of a decompressor.
            errno.EINVAL,  # A seek to nowhere.
        ):
            raise
        # zipfile, zlib, struct and Python's own parser raise nearly anything.
        raise ValueError(f"it is damaged ({error or type(error).__name__})") from error

"""Reads the pickles of CIFAR-10's batches without running anything that a pickle may name.

A batch is a dict of byte strings, integers, lists and one array of bytes. Pickle builds an array
by calls into NumPy and the codecs module. Here each of those names stands for a few lines of our
own, which can make an array of bytes and nothing else; every other name is refused.
"""

import io
import pickle
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError


class _ByteArray:
    """Stands for an ndarray while it is unpickled."""

    array: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _ByteType):
            raise pickle.UnpicklingError("an array is not of uint8")
        self.array = np.frombuffer(data, np.uint8).reshape(
            shape, order="F" if column_major else "C"
        )


class _ByteType:
    """Stands for the dtype uint8."""

    def __init__(self, code: str | bytes, *_: object):
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array is of dtype {code!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Takes the byte order and the like, which uint8 has no use for."""


def _reconstruct(*_: object) -> _ByteArray:
    return _ByteArray()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {codec!r}, not as latin1")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch does")
        return ALLOWED[module, name]


def load_batch(blob: bytes, what: str) -> dict[str, Any]:
    """Reads one batch: those of Python 2, and those that today's NumPy pickles by protocol 2.

    Args:
      blob: The pickle.
      what: What to call it in an error.

    Returns:
      The batch, its keys as str, its strings as bytes, its arrays as uint8 arrays.

    Raises:
      InputError: The pickle is damaged, or holds anything that a batch does not.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(blob), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__}, not a dict")
        return {
            key if isinstance(key, str) else str(key, "ascii"): (
                value.array if isinstance(value, _ByteArray) else value
            )
            for key, value in batch.items()
        }
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise InputError(f"{what} is not a batch of CIFAR-10 ({error})") from error

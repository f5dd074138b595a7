"""Safe reader of CIFAR-10's pickled batches, which runs nothing that a pickle may name.

A batch is a dict of byte strings, integers, lists and one array of bytes. Pickle builds an array
by calls into NumPy and the codecs module. Here each of those names is replaced by a few lines that
can make an array of bytes and nothing else; every other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError, reason
from diffusion_jax.reading.restricted_pickle import DATA, PROTOCOL_4, RestrictedUnpickler


class _ByteArray:
    """Replacement for an ndarray during unpickling."""

    array: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _ByteType):
            raise pickle.UnpicklingError("an array is not of uint8")
        self.array = np.frombuffer(data, np.uint8).reshape(
            shape, order="F" if column_major else "C"
        )


class _ByteType:
    """Replacement for the dtype uint8."""

    def __init__(self, code: str | bytes, *_: object):
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array is of dtype {code!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Ignores the byte order and the like, which are irrelevant for uint8."""


def _reconstruct(*_: object) -> _ByteArray:
    return _ByteArray()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {codec!r}, not as latin1")
    return text.encode("latin1")


_STRINGS = (pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING)  # Those of Python 2.

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(RestrictedUnpickler):
    format = "batch"
    operations = DATA | PROTOCOL_4 | {code[0] for code in _STRINGS}
    allowed = ALLOWED

    def set_state(self, made: object, state: object) -> None:
        """Sets the state of an array or a dtype; nothing else in a batch has one."""
        if not isinstance(made, (_ByteArray, _ByteType)):
            raise pickle.UnpicklingError("it sets the state of something other than an array")
        made.__setstate__(state)  # pyright: ignore[reportArgumentType]


def load_batch(blob: bytes, what: str) -> dict[str, Any]:
    """Reads a batch as pickled by Python 2, or by a present NumPy with protocol 2.

    Args:
      blob: The pickle.
      what: Description of the batch for errors.

    Returns:
      The batch, with keys as str, strings as bytes and arrays as uint8.

    Raises:
      InputError: The pickle is damaged, or holds anything that does not belong in a batch.
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
        raise InputError(f"{what} is not a batch of CIFAR-10 ({reason(error)[:200]})") from error

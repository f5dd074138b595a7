"""Safe reader of CIFAR-10's pickled batches, which runs nothing that a pickle may name.

A batch is a dict of byte strings, integers, lists and one array of bytes. Pickle builds an array
by calls into NumPy and the codecs module. Here each of those names is replaced by a few lines that
can make an array of bytes and nothing else; every other name is refused.

The unpickler is the standard library's pure-Python one: the C version crashes the process on deeply nested tuples, and
allocates whatever memory a number in the pickle asks for.
"""

import io
import pickle
from typing import Any, ClassVar

import numpy as np

from diffusion_jax.errors import InputError, reason


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


_OPERATIONS = {
    name[0]
    for name in (
        *(pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.PROTO, pickle.NONE),
        *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1),
        *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
        *(pickle.UNICODE, pickle.BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES),
        *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT),
        *(pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD),
        # Protocol 4.
        *(pickle.FRAME, pickle.MEMOIZE, pickle.STACK_GLOBAL, pickle.SHORT_BINUNICODE),
        *(pickle.BINUNICODE8, pickle.BINBYTES8),
    )
}

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


def _refuse(_: object) -> None:
    raise pickle.UnpicklingError("it holds objects that no batch does, such as a float")


class _BatchUnpickler(getattr(pickle, "_Unpickler")):  # noqa: B009
    """Unpickler with the operations of protocols 0 to 4 that a batch needs."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: operation if code in _OPERATIONS else _refuse
        for code, operation in getattr(pickle, "_Unpickler").dispatch.items()  # noqa: B009
    }

    def load_tuple(self, size: int | None = None) -> None:
        """Pushes a tuple on the stack; NumPy's are never nested more than two deep."""
        items = self.pop_mark() if size is None else [self.stack.pop() for _ in range(size)][::-1]
        if any(isinstance(x, tuple) for item in items if isinstance(item, tuple) for x in item):
            raise pickle.UnpicklingError("its tuples are nested deeply")
        self.append(tuple(items))

    dispatch[pickle.TUPLE[0]] = load_tuple
    dispatch[pickle.TUPLE1[0]] = lambda self: self.load_tuple(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self.load_tuple(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self.load_tuple(3)

    def load_build(self) -> None:
        """Sets the state of an array or a dtype; nothing else in a batch has one."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_ByteArray, _ByteType)):
            raise pickle.UnpicklingError("it sets the state of something other than an array")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch does")
        return ALLOWED[module, name]


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

"""Safe reader of torch's checkpoints, without torch: it builds arrays, and runs nothing that the file may name.

Both of torch's formats are a pickle whose tensors name a part of a storage, and the storages as plain bytes. Since
version 1.6 they are the entries of a zip archive; before, they followed the pickle in one stream.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.errors import reason
from diffusion_jax.reading.npz import damage_named
from diffusion_jax.reading.regular import open_regular
from diffusion_jax.reading.restricted_pickle import DATA, RestrictedUnpickler

_ZIP = b"PK\3\4"
_MAGIC = 0x1950A86A20F9469CFC6C  # Of the older format, and its version.
_VERSION = 1001
_MAX_DEPTH = 8  # Of mappings in mappings.
_MAX_NAME = 500
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """What the pickle says of a storage: `length` numbers."""

    key: str
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """What the pickle says of a tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint; those of nested mappings have names joined by periods.

    Tensors that share a storage share memory. Those in a list are named by their index. Numbers and text are left out.

    Raises:
      OSError: The file does not exist, cannot be read, or is not a regular file.
      ValueError: The file is damaged, or holds anything but tensors, numbers and text in mappings and lists.
    """
    with open_regular(path) as file:
        start = file.read(len(_ZIP))
        if start != _ZIP and not start.startswith(pickle.PROTO):
            raise ValueError("it is not a checkpoint of torch")
        content = start + file.read()
    try:
        with damage_named():
            read = _read_zip if start == _ZIP else _read_stream
            return dict(_arrays(*read(content)))
    except ValueError as error:
        raise ValueError(reason(error)[:200]) from error


def _read_zip(content: bytes) -> tuple[object, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    entries = {entry.filename: entry for entry in archive.infolist()}
    if sum(entry.file_size for entry in entries.values()) > len(content):
        raise ValueError("it is compressed, which torch's checkpoints never are")
    folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("it is a zip archive, but not one of torch")
    if f"{folders[0]}/constants.pkl" in entries:
        raise ValueError("it is a TorchScript program, which is not run; get the state_dict of it")
    order = f"{folders[0]}/byteorder"
    if order in entries and archive.read(order) != b"little":
        raise ValueError("its bytes are in another order than little-endian")
    tree = _TorchUnpickler(io.BytesIO(archive.read(f"{folders[0]}/data.pkl"))).load()
    return tree, lambda storage: archive.read(f"{folders[0]}/data/{storage.key}")


def _read_stream(content: bytes) -> tuple[object, Callable[[_Storage], bytes]]:
    stream = io.BytesIO(content)
    magic, version, system = [_TorchUnpickler(stream).load() for _ in range(3)]
    if magic != _MAGIC or version != _VERSION:
        raise ValueError("it is a pickle, but not a checkpoint of torch")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its bytes are in another order than little-endian")
    unpickler = _TorchUnpickler(stream)
    tree = unpickler.load()
    storages = {storage.key: storage for storage in unpickler.storages}
    found = dict[str, bytes]()
    for key in _TorchUnpickler(stream).load():
        storage, length = storages.get(key), int.from_bytes(stream.read(8), "little")
        if storage is None or length != storage.length:
            raise ValueError(f"a storage has {length} numbers, or belongs to no tensor")
        found[storage.key] = stream.read(length * storage.dtype.itemsize)
    return tree, lambda storage: found[storage.key]


def _arrays(tree: object, read: Callable[[_Storage], bytes]) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds a {type(tree).__name__.strip('_').lower()}, not a state_dict")
    storages = dict[str, np.ndarray]()
    for name, tensor in _tensors(tree):
        storage = tensor.storage
        if storage.key not in storages:
            found = read(storage)
            if len(found) != storage.length * storage.dtype.itemsize:
                raise ValueError(f"the numbers of {name} are cut off")
            storages[storage.key] = np.frombuffer(found, storage.dtype)
        numbers = storages[storage.key]
        if numbers.dtype != storage.dtype or len(numbers) != storage.length:
            raise ValueError(f"{name} is of another dtype or size than its storage")
        yield name, _view(name, tensor, numbers)


def _tensors(tree: Mapping[Any, Any]) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of nested mappings, each mapping once: a few that share others have endless paths."""
    met = set[int]()

    def walk(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, _Tensor]]:
        if id(mapping) in met:
            raise ValueError("it holds one mapping under two names; save the state_dict alone")
        met.add(id(mapping))
        if len(path) >= _MAX_DEPTH:
            raise ValueError(f"its mappings are nested deeper than {_MAX_DEPTH}")
        for key, value in mapping.items():
            if isinstance(value, _Tensor):
                yield ".".join((*path, _name(key))), value
            elif isinstance(value, Mapping):
                yield from walk(value, (*path, _name(key)))
            elif isinstance(value, list) and any(isinstance(item, _Tensor) for item in value):
                if id(value) in met:
                    raise ValueError("it holds one list of tensors under two names")
                met.add(id(value))
                for index, item in enumerate(value):
                    if isinstance(item, _Tensor):
                        yield ".".join((*path, _name(key), str(index))), item

    return walk(tree, ())


def _name(key: object) -> str:
    if not isinstance(key, str | int) or len(name := str(key)) > _MAX_NAME:
        raise ValueError(f"a name in it is no text of at most {_MAX_NAME} characters")
    return name


def _view(name: str, tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    size = math.prod(tensor.shape)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if size and tensor.offset + last >= len(numbers) or size > len(numbers):
        raise ValueError(f"{name} reaches beyond its storage")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    start = numbers[tensor.offset :] if size else numbers[:0]
    view = np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)
    return view if size else np.zeros(tensor.shape, numbers.dtype)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _Tensor:
    if len(shape) > 32:
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} axes")
    same = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not same or not all(map(_is_count, (offset, *shape, *strides))):
        raise pickle.UnpicklingError("a tensor is damaged")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    return tensor


def _ordered_dict(pairs: Any = ()) -> Any:
    """Returns a dict of the pairs, which are taken out of their list: a pickle can name one list many times."""
    made = collections.OrderedDict(pairs)
    if pairs:
        pairs.clear()
    return made


class _Number:
    """Stands for a number of NumPy, its type and its bytes, which are left out."""

    def __init__(self, *_: object) -> None:
        pass


class _TorchUnpickler(RestrictedUnpickler):
    format = "state_dict"
    operations = DATA | {pickle.BINPERSID[0], pickle.BINFLOAT[0]}
    allowed = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
        # Numbers of NumPy, such as the learning rate in the state of an optimizer.
        ("numpy.core.multiarray", "scalar"): _Number,
        ("numpy._core.multiarray", "scalar"): _Number,
        ("numpy", "dtype"): _Number,
        ("_codecs", "encode"): _Number,
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: list[_Storage] = []

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns a storage; the device that it was on is ignored."""
        kind, dtype, key, _, length, *view = pid
        known = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str)
        if not known or not _is_count(length) or any(part is not None for part in view):
            raise pickle.UnpicklingError("a storage is damaged")
        self.storages.append(_Storage(key, dtype, length))
        return self.storages[-1]

    def set_state(self, made: object, state: object) -> None:
        """Ignores the versions of modules, which torch keeps as an attribute of a state_dict, and types of numbers."""
        if not isinstance(made, collections.OrderedDict | _Number):
            super().set_state(made, state)

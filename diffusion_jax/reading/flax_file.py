"""Reader of Flax's checkpoints of one file: msgpack, which holds nothing that could run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from diffusion_jax.errors import reason
from diffusion_jax.reading.npz import damage_named
from diffusion_jax.reading.regular import open_regular

_MAX_DEPTH = 32  # Of mappings in mappings.
_ARRAY, _SCALAR = 1, 3  # Flax's extensions of msgpack: an array, and one without axes.


def read_flax_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays and numbers of a checkpoint; those of nested mappings have names joined by periods.

    Args:
      path: Of the file, such as checkpoint_26.

    Raises:
      OSError: The file does not exist, cannot be read, or is not a regular file.
      ValueError: The file is damaged, or no such checkpoint.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        with damage_named():
            tree = msgpack.unpackb(content, ext_hook=_array, strict_map_key=False)
            if not isinstance(tree, Mapping):
                raise ValueError("it is not a checkpoint of Flax")
            return dict(_arrays(tree, ()))
    except ValueError as error:
        raise ValueError(f"it is not a whole checkpoint of Flax: {reason(error)[:200]}") from error


def _arrays(tree: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    if len(path) > _MAX_DEPTH:
        raise ValueError(f"its mappings are nested deeper than {_MAX_DEPTH}")
    for key, value in tree.items():
        name = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _arrays(value, name)
        elif isinstance(value, np.ndarray | np.generic | int | float):
            yield ".".join(name), np.asarray(value)


def _array(kind: int, content: bytes) -> np.ndarray:
    """Returns an array of (shape, name of the dtype, its bytes in C order), which are msgpack themselves."""
    if kind not in (_ARRAY, _SCALAR):
        raise ValueError(f"it holds something of the kind {kind}, which is no array")
    shape, name, numbers = msgpack.unpackb(content)
    name = name.decode() if isinstance(name, bytes) else name
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if dtype.hasobject:
        raise ValueError("it holds an array of objects")
    return np.frombuffer(numbers, dtype).reshape(shape)

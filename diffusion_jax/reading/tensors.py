"""Readers of files of named tensors, none of which runs what a file may name: torch's, NumPy's and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError, reason
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.reading.regular import open_regular
from diffusion_jax.reading.torch_file import read_torch_file

_MOST_METADATA = 100_000_000  # Bytes of a header, as the library has it too.


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors in a file of torch, NumPy or safetensors.

    Args:
      path: Named *.pt, *.pth, *.bin, *.npz or *.safetensors.

    Raises:
      InputError: The file is damaged, of another kind, or holds anything but tensors.
      OSError: It does not exist or cannot be read.
    """
    if path.suffix not in READERS:
        raise InputError(f"weights are read from files named {', '.join(READERS)}, not from {path}")
    try:
        return READERS[path.suffix](path)
    except ValueError as error:
        raise InputError(f"{path} does not hold weights: {reason(error)}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the text that a safetensors file holds beside its tensors.

    Args:
      path: Of the file.

    Raises:
      InputError: It is no such file.
      OSError: It does not exist or cannot be read.
    """
    found = _header(path).get("__metadata__", {})
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a whole safetensors file")
    return {str(name): str(value) for name, value in found.items()}


def read_names(path: Path) -> list[str]:
    """Returns the names of the tensors in a safetensors file, without reading them.

    Args:
      path: Of the file.

    Raises:
      InputError: It is no such file.
      OSError: It does not exist or cannot be read.
    """
    return [name for name in _header(path) if name != "__metadata__"]


def _header(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size) if size <= _MOST_METADATA else b"")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a whole safetensors file") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a whole safetensors file")
    return header


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    open_regular(path).close()
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(reason(error)) from error


READERS = {
    ".pth": read_torch_file,
    ".pt": read_torch_file,
    ".bin": read_torch_file,
    ".npz": read_npz,
    ".safetensors": _read_safetensors,
}

"""Weights of published networks, from a file of the user or the published one, which is downloaded once and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from diffusion_jax.addresses import expand
from diffusion_jax.data.sources.download import download
from diffusion_jax.errors import InputError, reason
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import FilePath
from diffusion_jax.reading.regular import open_regular
from diffusion_jax.reading.tensors import read_tensors

WEIGHTS = Option(
    FilePath("a .pth, .npz or .safetensors file"),
    "file of the extractor's weights; unset: the published file, downloaded once into the cache",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file of weights."""

    name: str
    url: str
    num_bytes: int
    sha256: str

    def is_of(self, sha256: str) -> bool:
        """Whether a file of this SHA-256 is the published one."""
        return sha256 == self.sha256

    def check(self, path: Path) -> str:
        """Returns the SHA-256 of the published file; raises an InputError for any other file."""
        found = checksum(path)
        if not self.is_of(found):
            raise InputError(
                f"{path} is not the published {self.name} ({path.stat().st_size} bytes, sha256 {found[:12]}…, not "
                f"{self.num_bytes} bytes, sha256 {self.sha256[:12]}…): get it again from {self.url}, or give a "
                "converted file another name"
            )
        return found


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(
    published: Published,
    weights: str | None,
    cache_dir: Path,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], str]:
    """Returns tensors in float32 by name, and the SHA-256 of their file; warns if it is not the published one's.

    Args:
      published: The published file.
      weights: The file of the user, if any: the published one or one converted from it.
      cache_dir: Folder for the downloaded file.
      shapes: Names and shapes of the tensors that are needed; others in the file are left out.

    Raises:
      InputError: There is no such file and it cannot be downloaded; it is not what its name says; or a tensor is
        missing, or has another shape.
    """
    path = Path(expand(weights)) if weights else cache_dir / "features" / published.name
    try:
        if not weights:
            download(
                published.url,
                path,
                published.check,
                "set eval.weights to it, or "
                "take eval.features=lite0 or classifier, which need no download",
            )
        sha256 = published.check(path) if path.name == published.name else checksum(path)
        found = read_tensors(path)
    except OSError as error:
        raise InputError(
            f"cannot read the weights {str(path)!r} ({reason(error)}): set eval.weights to the file {published.name} "
            f"from {published.url}"
        ) from error
    tensors = {name: _checked(path, found, name, shape) for name, shape in shapes.items()}
    if not published.is_of(sha256):
        warnings.warn(
            f"the weights in {path} are not verified to be the published ones, since the file is not {published.name} "
            f"(sha256 {published.sha256[:12]}…); a distance with them is never called fid",
            stacklevel=2,
        )
    return tensors, sha256


def _checked(
    path: Path, found: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    if name not in found:
        raise InputError(f"{path} has no tensor {name}, so it holds the weights of another network")
    tensor = found[name]
    if tensor.shape != shape:
        raise InputError(f"{name} in {path} has the shape {tensor.shape}; it must be {shape}")
    if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
        raise InputError(
            f"{name} in {path} is of {tensor.dtype}; weights are floating-point numbers"
        )
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"{name} in {path} is not finite")
    return tensor

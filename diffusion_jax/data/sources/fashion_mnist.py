"""Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 images of 28x28x1, gzip IDX files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data.sources.base import (
    IMAGE_SIZE,
    SOURCE_DIR,
    Contents,
    Source,
    Storage,
    check_size,
    existing_folder,
    listing,
    split_arrays,
)
from diffusion_jax.data.sources.download import download
from diffusion_jax.errors import InputError
from diffusion_jax.reading.regular import open_regular

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# SHA-256 of the unpacked files: the same images are distributed in differing gzip streams.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_LARGEST = 1 << 30  # Bytes, unpacked; the published images are 47 MB.
FILES = {name + ".gz": sha256 for name, sha256 in SHA256.items()}


def fashion_mnist(
    storage: Storage,
    *,
    source_dir: Annotated[Path | None, SOURCE_DIR] = None,
    image_size: Annotated[int | None, IMAGE_SIZE] = None,
) -> Source:
    """Returns the data set in source_dir, else Debian's copy, else a download.

    Only the structure of files in source_dir is checked, so that other data sets in this format work;
    the other two must be the published images.
    """
    check_size(image_size, "fashion_mnist", 28)
    if source_dir is None:
        return Source("published", lambda: _read(_published(storage.downloads), check=True))
    folder = existing_folder(source_dir, "fashion_mnist")
    files = [folder / name for name in FILES]
    for file in files:
        if not file.is_file():
            raise InputError(f"source_dir {str(folder)!r} holds no {file.name}")
    return Source(listing(files), lambda: _read(files, check=False))


def _published(download_dir: Path) -> list[Path]:
    if all((DEBIAN_DIR / name).is_file() for name in FILES):
        return [DEBIAN_DIR / name for name in FILES]
    return [
        download(
            URL + name,
            download_dir / "fashion_mnist" / name,
            functools.partial(read_idx, sha256=sha256),
        )
        for name, sha256 in FILES.items()
    ]


def _read(files: list[Path], *, check: bool) -> Contents:
    arrays = [read_idx(file, FILES[file.name] if check else None) for file in files]
    splits, num_images = {}, 0
    for name, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(labels):
            raise InputError(
                f"the {name} files in {str(files[0].parent)!r} hold images of shape {images.shape} "
                f"and labels of shape {labels.shape}; they must be (n, 28, 28) and (n,)"
            )
        if labels.max() >= len(CLASS_NAMES):
            raise InputError(
                f"the {name} labels in {str(files[0].parent)!r} go up to {labels.max()}; at most "
                f"{len(CLASS_NAMES) - 1} is allowed"
            )
        splits[name] = split_arrays(images[..., None], labels.astype(np.int64))
        num_images += len(labels)
    return Contents((28, 28, 1), CLASS_NAMES, num_images, splits)


def read_idx(path: Path, sha256: str | None = None) -> UInt8[np.ndarray, "*dims"]:
    """Reads a gzip IDX file of bytes: 0, 0, 8, the rank, big-endian sizes, then the values.

    Args:
      path: The file.
      sha256: Checksum of the unpacked file; None: not checked.

    Raises:
      InputError: The file has another format, is truncated or too long, or has another checksum.
    """
    try:
        with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
            blob = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} is not a whole gzip file ({error})") from error
    if sha256 is not None and hashlib.sha256(blob).hexdigest() != sha256:
        raise InputError(f"{str(path)!r} is not the published file: its SHA-256 is not {sha256}")
    if len(blob) < 4 or blob[:3] != b"\0\0\x08" or len(blob) < 4 + 4 * blob[3]:
        raise InputError(f"{str(path)!r} is not an IDX file of bytes: it starts {blob[:4].hex()}")
    if len(blob) > _LARGEST or blob[3] > 8:
        raise InputError(f"{str(path)!r} is larger than any file of images that is read here")
    shape = struct.unpack(f">{blob[3]}I", blob[4 : 4 + 4 * blob[3]])
    values = np.frombuffer(blob, np.uint8, offset=4 + 4 * blob[3])
    if values.size != math.prod(shape):  # Python integers, which do not overflow.
        raise InputError(f"{str(path)!r} holds {values.size} values; its header says {shape}")
    try:
        return values.reshape(shape)
    except ValueError as error:  # No values, and sizes that no array can have.
        raise InputError(f"{str(path)!r} has sizes {shape} in its header: {error}") from error

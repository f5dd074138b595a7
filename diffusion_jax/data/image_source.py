"""Images of any origin to measure: a folder of pictures, an .npz, or the folder of a finished sampling job."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from diffusion_jax.data import image_file, picture
from diffusion_jax.data.folder import pictures_in, shown
from diffusion_jax.data.headers import in_threads
from diffusion_jax.data.split import Batch, Split, from_arrays
from diffusion_jax.errors import InputError, RunError, reason
from diffusion_jax.reading.npz import read_npz

JOB_NPZ, JOB_RECORDS, JOB_PNG = "images.npz", "array_record", "png"  # Of a sampling job.
ARRAYS = ("images", "arr_0")  # Names of images in our files, and in those of guided-diffusion.


def open_images(path: Path, field: str) -> Split:
    """Opens images without changing a pixel of them; those of a folder are read when they are needed.

    Args:
      path: A folder of pictures, sub-folders included; an .npz with uint8 `images` or `arr_0`, N×H×W×C; or the folder
        of a sampling job.
      field: The setting that names it, for messages.

    Raises:
      InputError: There are no images, they cannot be read, have several sizes, or are not of 8 bits.
    """
    if not path.exists():
        raise InputError(f"{field}: there is no {shown(str(path))}")
    if not path.is_dir():
        if path.suffix.lower() != ".npz":
            raise InputError(
                f"{field}: {shown(str(path))} is neither a folder nor an .npz file; np.savez(FILE, images=ARRAY) makes "
                "one of uint8 images, N x H x W x C"
            )
        return images_of(_arrays(path, field), path, field)
    if (path / JOB_NPZ).is_file():
        return images_of(_arrays(path / JOB_NPZ, field), path / JOB_NPZ, field)
    if (path / JOB_RECORDS).is_dir():
        from diffusion_jax.data.reader import read_images  # TFDS is slow to import.

        return read_images(path / JOB_RECORDS)
    if (path / "job.json").is_file() and not (path / JOB_PNG).is_dir():
        raise InputError(f"{field}: the job {shown(str(path))} is not finished; run it again")
    return _pictures(path / JOB_PNG if (path / "job.json").is_file() else path, field)


def _arrays(path: Path, field: str) -> dict[str, np.ndarray]:
    try:
        return read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{field}: cannot read {shown(str(path))}: {reason(error)}") from error


def images_of(arrays: dict[str, np.ndarray], path: Path, field: str) -> Split:
    """Returns the images among the arrays of a file.

    Raises:
      InputError: There are none, or they are not uint8, N×H×W×C.
    """
    name = next((name for name in ARRAYS if name in arrays), None)
    if name is None:
        raise InputError(
            f"{field}: {shown(str(path))} holds {', '.join(sorted(arrays)) or 'nothing'}; it must hold uint8 images as "
            f"{' or '.join(ARRAYS)}"
        )
    try:
        return from_arrays(arrays[name])
    except InputError as error:
        raise InputError(f"{field}: {shown(str(path))}: {error}") from error


def _pictures(folder: Path, field: str) -> Split:
    """Returns the pictures below a folder, in the order of their names."""
    found = pictures_in(folder, field)
    if not found.names:
        raise InputError(
            f"{field}: no images in {shown(str(folder))}; it must hold {picture.KINDS}"
            + (f" ({found.passed_over_in_words()})" if found.passed_over else "")
        )
    if note := found.note():
        warnings.warn(f"{field}: {note}", stacklevel=1)
    paths = [os.path.join(folder, name) for name in found.names]
    kinds = list(in_threads(lambda path: _shape(path, field), paths))
    if clear := sum(transparent for *_, transparent in kinds):
        warnings.warn(
            f"{field}: {clear} images have transparency; it is laid over white", stacklevel=1
        )
    sizes = Counter((height, width) for height, width, *_ in kinds)
    if len(sizes) > 1:
        common = ", ".join(f"{n} of {h}x{w}" for (h, w), n in sizes.most_common(3))
        odd = next(p for p, kind in zip(paths, kinds, strict=True) if kind[:2] != kinds[0][:2])
        raise InputError(
            f"{field}: the images in {shown(str(folder))} have several sizes (height x width: {common}, such as "
            f"{shown(odd)}); resize them first, since the resize decides the result"
        )
    mode = "RGB" if any(color for _, _, color, _ in kinds) else "L"
    ((height, width),) = sizes

    def decode(path: str) -> UInt8[np.ndarray, "h w c"]:
        try:
            image = image_file.read(path)
        except (picture.Unreadable, OSError) as error:
            raise RunError(f"cannot read {shown(path)}: {reason(error)}") from error
        return np.asarray(image_file.over_white(image, mode)).reshape(height, width, len(mode))

    def read(indices: Int64[np.ndarray, " b"]) -> Batch:
        pixels = list(in_threads(decode, [paths[i] for i in indices]))
        return {"image": np.stack(pixels), "label": np.zeros(len(pixels), np.int32)}

    return Split(len(paths), (height, width, len(mode)), (), read)


def _shape(path: str, field: str) -> tuple[int, int, bool, bool]:
    """Returns height, width, and whether a picture has colors and transparency; it is decoded, so that damage shows."""
    try:
        image = image_file.read(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{field}: cannot read {shown(path)}: {reason(error)}") from error
    return image.height, image.width, not image_file.is_gray(image), image.mode in ("LA", "RGBA")

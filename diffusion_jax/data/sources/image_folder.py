"""Any tree of PNG, JPEG and WebP files, cropped and resized to squares of one size."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffusion_jax.data.image_file import fit, is_grey
from diffusion_jax.data.sources.base import (
    Contents,
    LabelledImage,
    Request,
    Source,
    existing_source,
    held_out,
    listing,
    refuse_options,
)
from diffusion_jax.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
DECODE_CHUNK = 64


def find(request: Request) -> Source:
    """Returns the images below source_dir, at image_size; a class is a sub-folder of source_dir.

    There are classes if no image lies directly in source_dir. Of each, `test_fraction` is held
    out.
    """
    refuse_options(request, "image_folder")
    folder = existing_source(request, "image_folder")
    size = request.image_size
    if size is None or size < 1:
        raise InputError(f"image_size is {size}; image_folder needs a size of at least 1")
    files = image_files(folder)
    if not files:
        raise InputError(
            f"source_dir {str(folder)!r} holds no images ({', '.join(sorted(SUFFIXES))})"
        )
    key = f"{listing(files)} {size} {request.test_fraction}"
    return Source(key, lambda: _read(folder, files, size, request.test_fraction))


def image_files(folder: Path) -> list[Path]:
    """Returns the image files below a folder in a fixed order, but no hidden ones."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A link may lead back to a folder above it.
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [
            Path(root, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _read(folder: Path, files: list[Path], size: int, test_fraction: float) -> Contents:
    with ThreadPoolExecutor() as pool:
        greys = list(pool.map(_is_grey, files))
    names = [file.relative_to(folder) for file in files]
    readable = [name for name, grey in zip(names, greys, strict=True) if grey is not None]
    left_out = [str(name) for name, grey in zip(names, greys, strict=True) if grey is None]
    if not readable:
        raise InputError(f"none of the {len(files)} images in {str(folder)!r} can be read")
    mode = "RGB" if False in greys else "L"
    nested = all(len(name.parts) > 1 for name in readable)
    classes, labels = np.unique([name.parts[0] for name in readable], return_inverse=True)
    if not nested:
        classes, labels = classes[:0], np.zeros_like(labels)
    test = held_out(labels, test_fraction)
    splits = {}
    for name, rows in {"train": ~test, "test": test}.items():
        chosen = [(readable[i], int(labels[i])) for i in np.flatnonzero(rows)]
        if chosen:
            splits[name] = _decode_all(folder, chosen, size, mode, left_out)
    return Contents((size, size, len(mode)), tuple(classes.tolist()), splits, left_out)


def _decode_all(
    folder: Path, files: Sequence[tuple[Path, int]], size: int, mode: str, left_out: list[str]
) -> Iterator[LabelledImage]:
    """Yields the images in order, decoded by threads a few at a time; names the bad ones."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), DECODE_CHUNK):
            chunk = files[start : start + DECODE_CHUNK]
            images = pool.map(lambda item: _decode(folder / item[0], size, mode), chunk)
            for (name, label), image in zip(chunk, images, strict=True):
                if image is None:
                    left_out.append(str(name))
                else:
                    yield image, label


def _is_grey(path: Path) -> bool | None:
    """Says from a file's header whether the image is grey; None if the header is damaged."""
    try:
        with Image.open(path) as image:
            return is_grey(image)
    except Exception:  # Decoders raise nearly anything on damaged files.
        return None


def _decode(path: Path, size: int, mode: str) -> UInt8[np.ndarray, "size size c"] | None:
    """Reads an image file; None if it is damaged."""
    try:
        with Image.open(path) as image:
            return fit(image, size, mode)
    except Exception:  # Decoders raise nearly anything on damaged files.
        return None

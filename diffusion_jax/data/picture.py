"""Reading of picture files: allowed formats, size limits and detection of damage."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from diffusion_jax.data import png

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
MODES |= {"I;16", "I;16B", "I;16L", "I;16N"}
KINDS = "PNG, JPEG, WebP, TIFF, BMP or GIF"
MAX_PIXELS = 178_956_970  # 512 MiB in RGB; Pillow's own limit too.
MAX_BYTES = 2**31
DAMAGED = "damaged"
BOTH_ORDERS = {
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
}  # Formats whose 16-bit pixels Pillow can read in either byte order.
DIM = 2**14  # 16-bit pixels with all values below this hold fewer bits: 10, 12 or 14.

# Other formats found under a picture's name, by their first bytes.
_OTHERS = {
    b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"DDS ": "DDS", b"8BPS": "PSD",
    b"\0\0\0\x0cjP": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\1\0": "ICO", b"<svg": "SVG",
}  # fmt: skip
_BRANDS = {b"ftypavi": "AVIF", b"ftyphei": "HEIC", b"ftyphev": "HEIC", b"ftypmif": "HEIC"}


class Unreadable(ValueError):
    """A picture that cannot be used, damaged or not; the message gives the kind of reason before any colon."""

    @property
    def kind(self) -> str:
        """Kind of reason; for damaged pictures just that, since decoders word it in many ways."""
        return DAMAGED if isinstance(self, Damaged) else str(self)


class Damaged(Unreadable):
    """A truncated or altered picture, or a file that is not a picture; the message says why."""


@contextlib.contextmanager
def header(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """Opens a picture and reads only its header: format, mode and size.

    Raises:
      Unreadable: Another kind of file, or more pixels than `MAX_PIXELS`; `Damaged` if it is not a picture.
      OSError: The system cannot open it.
    """
    with _regular(path) as file, understood():
        yield _opened(file)


def load(path: str | os.PathLike[str]) -> Image.Image:
    """Returns the decoded picture as stored; the first one if the file has several.

    Raises:
      Unreadable: See `header`; also for 16-bit pixels that hold fewer bits. `Damaged` if pixels are missing or altered.
      OSError: The system cannot open it.
    """
    with _regular(path) as file:
        data = file.read()
    return decoded(data)


def decoded(data: bytes) -> Image.Image:
    """Decodes a picture from the bytes of its file; raises `Unreadable` as `load` does."""
    with understood():
        image = _opened(io.BytesIO(data))
        deep = is_deep(image)
        if image.format == "PNG":
            png.check(data)
        image.load()
        if image.format == "PNG" and (png.is_interlaced(data) or _ends_black(image)):
            png.check_rows(
                data
            )  # This takes half as long as decoding, so only do it if rows may be missing.
        if deep:
            _check_range(image, data)
    return image


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Converts decoder errors, which can be nearly anything, to `Damaged`."""
    try:
        yield
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable("too large for the memory") from error
    except Exception as error:
        raise Damaged((str(error) or type(error).__name__).splitlines()[0]) from error


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a picture that is not decoded yet is stored with 16 bits per channel."""
    return image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)


def _ends_black(image: Image.Image) -> bool:
    """Whether the last row is all zeros, as Pillow fills in a missing one."""
    corner = image.getpixel((image.width - 1, image.height - 1))
    if any(
        corner if isinstance(corner, tuple) else (corner,)
    ):  # The usual case; the rest is slower.
        return False
    last = image.crop((0, image.height - 1, *image.size))
    return last.getbbox(alpha_only=False) is None


def _check_range(image: Image.Image, data: bytes) -> None:
    """Raises if 16-bit pixels would become nearly black."""
    most = ""
    if image.mode.startswith("I;16"):
        brightest = int(np.asarray(image).max())
    elif (upper := _largest(image)) or image.mode not in BOTH_ORDERS:
        most, brightest = "at most ", 256 * upper + 255  # Pillow keeps the upper byte.
    else:
        brightest = _largest(_lower_bytes(data))
    if 0 < brightest < DIM:
        raise Unreadable(
            f"nearly black: its brightest value is {most}{brightest} of 65535, so its 16 bits seem to hold "
            f"{brightest.bit_length()}; scale it to the full range 0...65535, or save it with 8 bits"
        )


def _largest(image: Image.Image) -> int:
    """Returns the largest byte of the color channels."""
    colors = [image.getchannel(band) for band in image.getbands() if band != "A"]
    return int(max(np.asarray(color).max() for color in colors))


def _lower_bytes(data: bytes) -> Image.Image:
    """Returns the lower bytes of a picture with 16 bits per channel, by reading it in the other byte order."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

    def swapped(raw: Any) -> Any:
        if isinstance(raw, tuple):
            return tuple(map(swapped, raw))
        return raw[:-1] + other[raw[-1]] if isinstance(raw, str) and ";16" in raw else raw

    image = _opened(io.BytesIO(data))
    for i, tile in enumerate(image.tile):
        # Earlier versions of Pillow have plain tuples.
        make: Any = getattr(type(tile), "_make", tuple)
        image.tile[i] = make((*tile[:3], swapped(tile[3])))
    image.load()
    return image


@contextlib.contextmanager
def _regular(path: str | os.PathLike[str]) -> Iterator[io.BufferedIOBase]:
    """Opens a regular file only: a read from a pipe might never return, and opening a device can have effects."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > MAX_BYTES:
        raise Unreadable(f"too large: {status.st_size} bytes, limit {MAX_BYTES}")
    with open(path, "rb") as file:
        yield file


@functools.cache
def _readers() -> list[tuple[Callable[..., Any], Callable[[bytes], Any]]]:
    """Returns Pillow's readers of `FORMATS` alone: `Image.open` tries all its readers, and some start programs."""
    for name in ("Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP"):
        importlib.import_module(f"PIL.{name}ImagePlugin")
    readers = [Image.OPEN[name] for name in FORMATS]
    return [(reader, accept) for reader, accept in readers if accept is not None]


def _opened(file: io.BufferedIOBase) -> ImageFile.ImageFile:
    start = file.read(32)
    file.seek(0)
    reader = next((reader for reader, accept in _readers() if accept(start[:16]) is True), None)
    if reader is None:
        raise _other(start)
    image: ImageFile.ImageFile = reader(file, "")
    if (pixels := image.width * image.height) > MAX_PIXELS:
        raise Unreadable(f"too large: {pixels} pixels, limit {MAX_PIXELS}")
    if image.mode in ("I", "F"):
        raise Unreadable(
            "32 bits per pixel, with unknown black and white levels; save it with 8 or 16 bits"
        )
    if image.mode not in MODES:
        raise Unreadable(f"colors of mode {image.mode}; save it as RGB or gray")
    return image


def _other(start: bytes) -> Unreadable:
    """Returns the error for a file that is in none of the `FORMATS`."""
    if not start:
        return Damaged("the file is empty")
    other = next((name for first, name in _OTHERS.items() if start.startswith(first)), None)
    other = other or _BRANDS.get(start[4:11])
    return Unreadable(f"{other}, not {KINDS}") if other else Damaged(f"not {KINDS}")

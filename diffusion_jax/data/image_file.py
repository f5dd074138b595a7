"""Conversion of an encoded image to a square array: orientation, transparency, gray, crop and size."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from diffusion_jax.data import picture

ORIENTATION = ExifTags.Base.Orientation


def is_gray(image: Image.Image) -> bool:
    """Whether an image is stored with a single channel of gray (and perhaps transparency)."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def read(path: str | os.PathLike[str]) -> Image.Image:
    """Returns the upright picture in a file, in 8 bits, as L, LA, RGB or RGBA.

    Raises:
      picture.Unreadable: The file is not a picture, is damaged or is of an unsupported kind; the message says why.
      OSError: The system cannot open it.
    """
    image = picture.load(path)
    with picture.understood():
        return _plain(image)


def pixels(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w c"]:
    """Returns a picture's unchanged pixels, as written by `pictures.save_png`; raises what `read` does."""
    image = read(path)
    return np.asarray(image).reshape(image.height, image.width, len(image.getbands()))


def decode(path: str | os.PathLike[str], size: int, mode: str) -> UInt8[np.ndarray, "size size c"]:
    """Returns `fit` of the picture in a file; raises what `read` does."""
    return _square(read(path), size, mode)


def fit(image: Image.Image, size: int, mode: str) -> UInt8[np.ndarray, "size size c"]:
    """Returns the largest centered square of an image, resized by an antialiased Lanczos filter.

    The EXIF orientation is applied first, and transparent pixels are composited over white.

    Args:
      image: Any image that Pillow opens.
      size: Height and width of the result.
      mode: "L" for one channel, "RGB" for three.
    """
    return _square(_plain(image), size, mode)


def over_white(image: Image.Image, mode: str) -> Image.Image:
    """Converts a picture from `read` to mode L or RGB; transparent pixels are composited over white."""
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _square(image: Image.Image, size: int, mode: str) -> UInt8[np.ndarray, "size size c"]:
    image = ImageOps.fit(over_white(image, mode), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, len(image.getbands()))


def _plain(image: Image.Image) -> Image.Image:
    """Returns the upright image, in 8 bits, as L, LA, RGB or RGBA."""
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 rather than scale.
        gray = np.clip(np.asarray(image, np.int64), 0, 65535)
        if (clear := image.info.get("transparency")) is not None:
            gray[gray == clear] = 65535  # It would be composited over white.
        image = Image.fromarray(np.round(gray / 257).astype(np.uint8))
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")

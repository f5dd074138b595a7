"""From an encoded image to a square array: orientation, transparency, grey, crop and size."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def is_grey(image: Image.Image) -> bool:
    """Says whether an image is stored with a single channel of grey (and perhaps transparency)."""
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def fit(image: Image.Image, size: int, mode: str) -> UInt8[np.ndarray, "size size c"]:
    """Returns the largest centred square of an image, resized by an antialiased Lanczos filter.

    The EXIF orientation is applied first, and transparent pixels are laid over white.

    Args:
      image: Any image that Pillow opens.
      size: Height and width of the result.
      mode: "L" for one channel, "RGB" for three.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 rather than scale.
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    image = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, len(image.getbands()))

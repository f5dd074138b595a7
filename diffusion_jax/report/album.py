"""Pictures as data URIs, made small enough that the page stays below 5 MB."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data import picture as picture_files
from diffusion_jax.errors import reason
from diffusion_jax.report.blocks import Note, Picture

if TYPE_CHECKING:
    from PIL import Image

BUDGET = 3_400_000  # Bytes of all pictures of a page.
LIMIT = 220_000  # Bytes of one.
MOST_SIDE = 1400  # Pixels.
COARSE = 480  # Smaller pictures are magnified to about this many pixels a side.
LEAST_SIDE = 48


class Album:
    """Encodes pictures until the budget of the page is spent."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._left = budget

    def file(
        self, path: Path, alt: str, caption: str = "", *, limit: int = LIMIT
    ) -> Picture | Note:
        """Returns the picture of a file, or why it is not shown."""
        try:
            image = picture_files.load(path)
        except (OSError, ValueError) as error:
            return Note(f"{path.name} cannot be shown: {reason(error)}.")
        return self._shown(image, path.name, alt, caption, limit)

    def array(
        self, pixels: UInt8[np.ndarray, "h w c"], alt: str, caption: str = "", *, limit: int = LIMIT
    ) -> Picture | Note:
        """Returns the picture of an array, or why it is not shown."""
        from PIL import Image

        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)
        return self._shown(image, alt, alt, caption, limit)

    def _shown(
        self, image: Image.Image, name: str, alt: str, caption: str, limit: int
    ) -> Picture | Note:
        width, height = image.size
        limit = min(limit, self._left)
        encoded = _encoded(_plain(image), limit)
        if encoded is None:
            return Note(f"{name} is left out: the pictures of this page have reached their limit.")
        source, small = encoded
        self._left -= len(source)
        if small[0] < width:
            shrunk = f"shown at {small[0]} × {small[1]} of {width} × {height} pixels"
            caption = f"{caption} ({shrunk})" if caption else shrunk
        factor = max(1, COARSE // max(small))
        return Picture(source, small[0] * factor, small[1] * factor, alt, caption, factor > 1)


def _plain(image: Image.Image) -> Image.Image:
    """Returns the image in gray or RGB, on white if it is transparent."""
    from PIL import Image

    if image.mode in ("1", "L", "RGB"):
        return image.convert("L") if image.mode == "1" else image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _encoded(image: Image.Image, limit: int) -> tuple[str, tuple[int, int]] | None:
    """Returns the data URI of at most so many bytes, and its size in pixels; None if that cannot be."""
    from PIL import Image

    if max(image.size) > MOST_SIDE:
        image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    while True:
        for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
            file = io.BytesIO()
            image.save(file, kind, **options)
            source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
            if len(source) <= limit:
                return source, image.size
        if max(image.size) <= LEAST_SIDE:
            return None
        image = image.resize((max(1, image.width * 7 // 10), max(1, image.height * 7 // 10)))

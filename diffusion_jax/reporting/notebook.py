"""Images as notebooks show them: sharp pixels at a readable size, without a plot around them."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Num, UInt8

from diffusion_jax.errors import InputError
from diffusion_jax.reporting import pictures

WIDTH = 640  # CSS pixels at most, and about half of it at least.


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture that a notebook shows where it is a cell's last value, or given to `display`.

    Attributes:
      pixels: What is shown; tiny pictures are enlarged by whole factors.
      title: Caption, and text for those who cannot see it.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    title: str = ""

    def png(self) -> bytes:
        """Returns the file."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.pixels.squeeze(2) if self.pixels.shape[2] == 1 else self.pixels).save(
            buffer, "png", optimize=True
        )
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()

    def _repr_html_(self) -> str:
        width = self.pixels.shape[1]
        shown = width * max(1, WIDTH // width)
        data = base64.b64encode(self.png()).decode()
        title = html.escape(self.title)
        return (
            f'<figure style="margin:0"><img alt="{title}" width="{shown}" '
            'style="image-rendering:pixelated;max-width:100%;height:auto" '
            f'src="data:image/png;base64,{data}"><figcaption>{title}</figcaption></figure>'
        )


def show(
    images: Num[np.ndarray | Array, "... h w c"],
    title: str = "",
    *,
    columns: int | None = None,
    arrange: Callable[..., np.ndarray] = pictures.grid,
) -> Picture:
    """Returns a picture of images for a notebook.

      show(result.images, "samples")
      show(result.frames_x0, arrange=dj.reporting.pictures.progressive)

    Args:
      images: One image, or several, of 1 or 3 channels: uint8; or floats of about [-1, 1], which are clipped.
      title: Caption.
      columns: Images in a row; by default the arrangement's.
      arrange: Images -> picture, a function of `reporting.pictures`.

    Raises:
      InputError: The images have other than 1 or 3 channels, or another type.
    """
    pixels = np.asarray(images)
    if pixels.ndim < 3 or pixels.shape[-1] not in (1, 3) or pixels.size == 0:
        raise InputError(f"images have the shape {pixels.shape}; it must be (..., H, W, 1 or 3)")
    if np.issubdtype(pixels.dtype, np.floating) or pixels.dtype.name == "bfloat16":
        pixels = np.nan_to_num(pixels.astype(np.float32)).clip(-1, 1)
        pixels = np.round((pixels + 1) * 127.5).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise InputError(f"images are {pixels.dtype}; they must be uint8, or floats in [-1, 1]")
    if pixels.ndim == 3:
        return Picture(pixels, title)
    given = {} if columns is None else {"columns": columns}
    return Picture(arrange(pixels, **given), title)

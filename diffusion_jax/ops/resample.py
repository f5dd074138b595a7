"""Halving and doubling of images: by means and repeated pixels, or by a FIR filter (Karras et al., 2020, StyleGAN2)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import InputError


def halve(x: Float[Array, "b h w c"], fir: Sequence[float | int] = ()) -> Float[Array, "b oh ow c"]:
    """Returns images of half the height and width, which are even.

    Along each axis, y_i = sum_k f_k x_{2i + k - (n - 2)/2} with f = fir / sum(fir), and x = 0 outside.

    Args:
      x: Images, NHWC.
      fir: Taps of the filter, an even number n, such as (1, 3, 3, 1); empty: (1, 1), the mean of four pixels.
    """
    taps = _taps(fir)
    for axis in (1, 2):
        x = _halved(x, taps, axis)
    return x


def double(
    x: Float[Array, "b h w c"], fir: Sequence[float | int] = ()
) -> Float[Array, "b 2*h 2*w c"]:
    """Returns images of twice the height and width: 4 times the transpose of `halve`.

    Args:
      x: Images, NHWC.
      fir: Taps of the filter, an even number, such as (1, 3, 3, 1); empty: (1, 1), pixels are repeated.
    """
    taps = _taps(fir)
    for axis in (1, 2):
        x = _doubled(x, taps, axis)
    return x


def blur(x: Float[Array, "b h w c"], fir: Sequence[float | int]) -> Float[Array, "b h+1 w+1 c"]:
    """Returns images filtered at their own resolution, with zeros around them, on the grid between the pixels.

    Along each axis, y_i = sum_k f_k x_{i + k - n/2} with f = fir / sum(fir): every other y_i, from the second on, is
    that of `halve`. A convolution without padding follows: with stride 2, it is `halve` and a convolution in one.

    Args:
      x: Images, NHWC.
      fir: Taps of the filter, an even number n.
    """
    taps = _taps(fir)
    half = len(taps) // 2
    for axis in (1, 2):
        size = x.shape[axis] + 1
        padded = _padded(x, half, half, axis)
        x = sum(tap * _slice(padded, k, size, axis) for k, tap in enumerate(taps))  # type: ignore[assignment]
    return x


def _taps(fir: Sequence[float | int]) -> list[float]:
    taps = list(fir) or [1.0, 1.0]
    total = sum(taps)
    if len(taps) % 2 or not total > 0:
        raise InputError(
            f"fir is {tuple(fir)}; it must hold an even number of taps with a positive sum"
        )
    return [tap / total for tap in taps]


def _padded(x: Array, before: int, after: int, axis: int) -> Array:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (before, after)
    return jnp.pad(x, pads)


def _slice(x: Array, start: int, size: int, axis: int, step: int = 1) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + (size - 1) * step + 1, step)
    return x[tuple(index)]


def _halved(x: Array, taps: list[float], axis: int) -> Array:
    pad, size = len(taps) // 2 - 1, x.shape[axis] // 2
    padded = _padded(x, pad, pad, axis) if pad else x
    parts = [tap * _slice(padded, k, size, axis, 2) for k, tap in enumerate(taps)]
    return sum(parts[1:], parts[0])


def _doubled(x: Array, taps: list[float], axis: int) -> Array:
    """Interleaves even pixels, y_{2m} = 2 sum_j f_{2j + (n - 2)/2} x_{m - j}, then odd ones, of the next tap."""
    pad, size = len(taps) // 2 - 1, x.shape[axis]
    reach = (pad + 1) // 2 + 1
    padded = _padded(x, reach, reach, axis)
    parities = []
    for odd in (0, 1):
        # Pixel 2m + odd of the output has tap 2 (m - i) + odd + pad of pixel i.
        shifts = range(-reach, reach + 1)
        parts = [
            2 * taps[tap] * _slice(padded, reach - j, size, axis)
            for j in shifts
            if 0 <= (tap := 2 * j + odd + pad) < len(taps)
        ]
        parities.append(sum(parts[1:], parts[0]))
    stacked = jnp.stack(parities, axis + 1)
    return stacked.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])

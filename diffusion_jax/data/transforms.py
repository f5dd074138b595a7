"""Transforms of images on the device: pixel range and random flips, pure and jittable."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key, Shaped, UInt8

from diffusion_jax.errors import InputError

FAR = 1.5  # Samples drawn without clipping may exceed [-1, 1], but hardly this.
BRIGHT = 0.9  # Images with all values >= 0 and a maximum above this are taken to be in [0, 1].


def to_model_range(images: Shaped[Array | np.ndarray, "*dims"]) -> Float32[Array, "*dims"]:
    """Returns images in the model's range, [-1, 1]: x / 127.5 - 1 for pixels; floats are unchanged.

    The values of NumPy arrays are checked; for JAX arrays, which may be traced, only the dtype is.

    Args:
      images: Integer pixels in {0, ..., 255}, or {0, ..., 65535} for uint16; booleans, which become -1 and 1; or
        floats in [-1, 1].

    Raises:
      InputError: The dtype is none of these, or integers are out of range.

    Example:
      >>> dj.data.to_model_range(np.array([0, 255], np.uint8))
      Array([-1.,  1.], dtype=float32)
    """
    dtype = images.dtype
    known = isinstance(images, np.ndarray)
    if jnp.issubdtype(dtype, jnp.floating):
        if known:
            _warn_of_range(np.asarray(images, np.float32))
        return jnp.asarray(images, jnp.float32)
    if dtype == jnp.bool_:
        return jnp.where(images, jnp.float32(1), jnp.float32(-1))
    if not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(f"images have dtype {dtype}; they must be integers, floats or booleans")
    largest = 65535 if dtype == jnp.uint16 else 255
    if known and images.size and not 0 <= np.min(images) <= np.max(images) <= largest:
        raise InputError(
            f"pixels of dtype {dtype} go from {np.min(images)} to {np.max(images)}; they must be in 0 to {largest}"
        )
    return jnp.asarray(images).astype(jnp.float32) / (largest / 2) - 1


def _warn_of_range(images: Float32[np.ndarray, "*dims"]) -> None:
    """Warns about floats that are probably not in [-1, 1], on which a network would see mere noise."""
    if images.size == 0:
        return
    low, high = float(images.min()), float(images.max())
    if not -FAR <= low <= high <= FAR:  # Also true for NaN.
        seen = f"from {low:g} to {high:g}"
    elif 0 <= low and BRIGHT < high <= 1:
        seen = "all in [0, 1]"
    else:
        return
    warnings.warn(
        f"images are floats {seen}; they are passed to the network unchanged, which expects [-1, 1]",
        stacklevel=3,
    )


def to_uint8(images: Float[Array, "*dims"]) -> UInt8[Array, "*dims"]:
    """Returns the nearest pixel values of images in [-1, 1], clipped to {0, ..., 255}.

    Example:
      >>> dj.data.to_uint8(jnp.array([-1.0, 0.0, 1.0, 1.5]))
      Array([  0, 128, 255, 255], dtype=uint8)
    """
    pixels = jnp.round((images.astype(jnp.float32) + 1) * 127.5)
    return jnp.clip(pixels, 0, 255).astype(jnp.uint8)


def random_flip(key: Key[Array, ""], images: Shaped[Array, "b h w c"]) -> Shaped[Array, "b h w c"]:
    """Mirrors each image left to right with probability 1/2, independently.

    Args:
      key: Key of the batch.
      images: Images, of any type.
    """
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jax.lax.select(jnp.broadcast_to(flip, images.shape), images[:, :, ::-1], images)


def drop_labels(
    key: Key[Array, ""], labels: Int[Array, " b"], rate: float, no_label: int
) -> Int[Array, " b"]:
    """Replaces each label with `no_label` with probability `rate`, independently."""
    drop = jax.random.bernoulli(key, rate, labels.shape)
    return jnp.where(drop, no_label, labels)

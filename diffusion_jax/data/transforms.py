"""What happens to images on the device: pixel range and random flips, pure and jittable."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key, Shaped, UInt8


def to_model_range(
    images: UInt8[Array, "*dims"] | Float32[Array, "*dims"],
) -> Float32[Array, "*dims"]:
    """Returns x / 127.5 - 1: pixels in {0, ..., 255} become floats in [-1, 1]; floats stay as they are."""
    if images.dtype == jnp.float32:
        return images
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*dims"]) -> UInt8[Array, "*dims"]:
    """Returns the nearest pixel values of images in [-1, 1]; what lies outside is clipped."""
    pixels = jnp.round((images.astype(jnp.float32) + 1) * 127.5)
    return jnp.clip(pixels, 0, 255).astype(jnp.uint8)


def random_flip(key: Key[Array, ""], images: Shaped[Array, "b h w c"]) -> Shaped[Array, "b h w c"]:
    """Mirrors each image left to right with probability 1/2, independently."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jax.lax.select(jnp.broadcast_to(flip, images.shape), images[:, :, ::-1], images)


def drop_labels(
    key: Key[Array, ""], labels: Int[Array, " b"], rate: float, no_label: int
) -> Int[Array, " b"]:
    """Replaces each label by `no_label` with probability `rate`, independently."""
    drop = jax.random.bernoulli(key, rate, labels.shape)
    return jnp.where(drop, no_label, labels)

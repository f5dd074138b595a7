"""Features that need neither weights nor time: mixtures of the pixels of 8×8 gray images."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.features import FEATURES, Extractor
from diffusion_jax.options import Component

MIX = np.random.default_rng(0).normal(size=(8, 8, 6)).astype(np.float32) / 255


def mixed() -> Extractor:
    """Six mixtures of an image's pixels, the first four of which are the logits of classes."""

    def apply(params: Any, images: Any) -> Any:
        return jnp.einsum("bhwc,hwd->bd", images.astype(jnp.float32), params)

    return Extractor("mixed", MIX, apply, 6, "none", "f" * 64, lambda rows: rows[:, :4])


def features_of(images: np.ndarray) -> np.ndarray:
    """Returns the same, by NumPy in float64."""
    return np.einsum("bhwc,hwd->bd", images.astype(np.float64), MIX.astype(np.float64))


def register() -> None:
    """Makes them the features "mixed"."""
    FEATURES["mixed"] = Component(mixed, "mixtures of pixels")

"""scikit-learn's handwritten digits: 1,797 images of 8x8x1, embedded in the library."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from diffusion_jax.data.sources.base import (
    IMAGE_SIZE,
    TEST_FRACTION,
    Contents,
    Source,
    check_size,
    held_out,
    split_arrays,
)


def digits(
    *,
    image_size: Annotated[int | None, IMAGE_SIZE] = None,
    test_fraction: Annotated[float, TEST_FRACTION] = 0.2,
) -> Source:
    """Returns the digits, with a fixed split that holds out `test_fraction` of each class."""
    check_size(image_size, "digits", 8)
    return Source(f"test_fraction={test_fraction}", lambda: _read(test_fraction))


def _read(test_fraction: float) -> Contents:
    from sklearn.datasets import load_digits  # Slow to import.

    values, labels = load_digits(return_X_y=True)
    # Values are the integers 0 to 16, scaled here to the range of uint8.
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    test = held_out(labels, test_fraction)
    splits = {
        name: split_arrays(images[rows], labels[rows])
        for name, rows in {"train": ~test, "test": test}.items()
        if rows.any()
    }
    return Contents((8, 8, 1), tuple("0123456789"), len(images), splits)

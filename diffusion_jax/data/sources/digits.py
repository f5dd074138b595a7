"""scikit-learn's handwritten digits: 1,797 images of 8x8x1, embedded in the library."""

import numpy as np

from diffusion_jax.data.sources.base import (
    Contents,
    Request,
    Source,
    held_out,
    refuse_options,
    split_arrays,
)


def find(request: Request) -> Source:
    """Returns the digits, with a fixed split that holds out `test_fraction` of each class."""
    refuse_options(request, "digits", 8)
    return Source(f"test_fraction={request.test_fraction}", lambda: _read(request.test_fraction))


def _read(test_fraction: float) -> Contents:
    from sklearn.datasets import load_digits  # Slow to import.

    values, labels = load_digits(return_X_y=True)
    # Values are the integers 0 to 16, spread here over the range of uint8.
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    test = held_out(labels, test_fraction)
    splits = {
        name: split_arrays(images[rows], labels[rows])
        for name, rows in {"train": ~test, "test": test}.items()
        if rows.any()
    }
    return Contents((8, 8, 1), tuple("0123456789"), len(images), splits)

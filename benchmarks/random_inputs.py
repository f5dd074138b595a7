"""Random weights and images, the same on both sides of a comparison: functions of names, shapes and numbers alone."""

import zlib
from collections.abc import Mapping

import numpy as np

SIZES = ((32, 32), (300, 200), (224, 224), (8, 8))  # Of images.
TINY = {"width": 32, "depth": 2, "heads": 2, "patch": 14, "trained_grid": 37}


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor whose effect shows in the features, and does not explode."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if "norm" in name or "lambda" in name:
        values = draw.uniform(0.5, 1.5, shape) - ("bias" in name)
    elif len(shape) in (2, 4):
        values = draw.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    else:
        values = draw.normal(0, 0.5, shape)
    return values.astype(np.float32)


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the tensors of these names and shapes."""
    return {name: random_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def random_images(size: tuple[int, int]) -> np.ndarray:
    """Returns two images with smooth and rough parts, uint8."""
    draw = np.random.default_rng(size)
    rows, columns = (np.linspace(0, 1, n) for n in size)
    phases = draw.uniform(-9, 9, (2, 3, 2))
    waves = np.sin(
        phases[:, :, 0, None, None] * rows[:, None] + phases[:, :, 1, None, None] * columns
    )
    smooth = waves.transpose(0, 2, 3, 1)
    return (128 + 110 * smooth + draw.normal(0, 25, smooth.shape)).clip(0, 255).astype(np.uint8)

"""Random weights of the FID's Inception-v3, images, and projections of features, the same wherever they are made."""

import zlib
from collections.abc import Mapping

import numpy as np

SIZES = ((8, 8), (32, 32), (64, 64), (299, 299), (300, 200))
NUM_FEATURES, PROJECTIONS, _PATCH = 2048, 64, 8


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor of torch's network whose features neither vanish nor explode."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("bn.weight", "bn.running_var")):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 200
    return (generator.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the tensors of these names and shapes."""
    return {name: random_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def pictures(size: tuple[int, int], count: int, seed: int = 0) -> np.ndarray:
    """Returns images of random patches with some noise, uint8."""
    generator, (height, width) = np.random.default_rng((seed, *size)), size
    patches = generator.integers(
        0, 256, (count, -(-height // _PATCH), -(-width // _PATCH), 3), np.int16
    )
    smooth = patches.repeat(_PATCH, axis=1).repeat(_PATCH, axis=2)[:, :height, :width]
    return (smooth + generator.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


def projected(features: np.ndarray) -> np.ndarray:
    """Returns a few numbers for each image that depend on all of its features."""
    return features @ np.random.default_rng(0).normal(size=(NUM_FEATURES, PROJECTIONS))

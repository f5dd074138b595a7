"""Noise-conditional score networks (Song & Ermon, 2019, 2020): geometric noise levels, and rules for choosing them.

x_i = x_0 + sigma_i eps with sigma_1 > ... > sigma_L is the variance-exploding process at L of its times. So `NCSN` is
a `VE` that is trained at these levels alone; they are also its whole grid. Its loss, the mean over the levels of
sigma^2 times the squared error of the score, is `simple`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr

from diffusion_jax.errors import InputError
from diffusion_jax.processes.process import NUM_TIMESTEPS
from diffusion_jax.processes.sde import STATIC, VE, check_ascending

CHUNK = 1000  # Images per block of the distance matrix.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NCSN(VE):
    """A `Process` with `num_timesteps` noise levels, geometric from sigma_max to sigma_min, the last included.

    Time is log sigma, as in VE, so networks of the two are interchangeable. A grid whose number of steps is not L also
    visits times between the levels.

    Attributes:
      num_timesteps: Number L of levels, 2 or more.
      sigma_min: sigma_L.
      sigma_max: sigma_1.

    Raises:
      InputError: A number out of its range.
    """

    num_timesteps: Annotated[int, NUM_TIMESTEPS] = dataclasses.field(default=100, metadata=STATIC)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_timesteps < 2:  # The first and the last level are two.
            raise InputError(
                f"num_timesteps is {self.num_timesteps!r}; it must be at least 2 for ncsn"
            )

    @property
    def levels(self) -> Float[np.ndarray, " L"]:
        """log sigma of each level, the least noisy first."""
        return self._time(np.arange(self.num_timesteps) / (self.num_timesteps - 1))


def largest_distance(images: Float[np.ndarray, " n *dims"]) -> float:
    """Returns the largest distance between two images, for sigma_1 (Song & Ermon, 2020, Technique 1).

    Args:
      images: All images of the data, in [-1, 1].
    """
    rows = np.asarray(images, np.float64).reshape(len(images), -1)
    rows = rows - rows.mean(0)  # Centering keeps distances, and the sum below loses fewer digits.
    squares = np.square(rows).sum(1)
    largest = 0.0
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        distances = squares[part, None] + squares[None, :] - 2 * rows[part] @ rows.T
        largest = max(largest, float(distances.max()))
    return float(np.sqrt(largest))


def ladder_ratio(dims: int, overlap: float = 0.5) -> float:
    """Returns gamma = sigma_{i-1} / sigma_i such that noise of neighboring levels overlaps (Technique 2).

    Phi((2 D)^(1/2) (gamma - 1) + 3 gamma) - Phi((2 D)^(1/2) (gamma - 1) - 3 gamma) = C: the length of the noise of
    level i lies within three standard deviations of that of level i - 1 with probability C.

    Args:
      dims: Number D of dimensions of an image.
      overlap: C; the paper says about 0.5, and its numbers of levels are those of 0.567.
    """

    def excess(gamma: float) -> float:
        away = np.sqrt(2 * dims) * (gamma - 1)
        return float(ndtr(away + 3 * gamma) - ndtr(away - 3 * gamma)) - overlap

    # At gamma = 1 nearly everything overlaps. In few dimensions ((2 D)^(1/2) < 3) levels overlap at any distance.
    highest = 1e6
    if excess(highest) >= 0:
        return np.inf
    gamma: Any = brentq(excess, 1.0, highest)
    return float(gamma)


def num_levels(sigma_min: float, sigma_max: float, dims: int, overlap: float = 0.5) -> int:
    """Returns the number L of levels whose neighbors' ratio is `ladder_ratio`, rounded; at least 2.

    Args:
      sigma_min: Smallest noise level.
      sigma_max: Largest noise level.
      dims: Dimensions D of an image.
      overlap: Overlap of neighboring levels; see `ladder_ratio`.

    Raises:
      InputError: Unless 0 < sigma_min < sigma_max < infinity.

    Example:
      >>> dj.processes.num_levels(0.01, 50.0, dims=32 * 32 * 3, overlap=0.567)  # CIFAR-10, in [0, 1].
      232
    """
    check_ascending("sigma", sigma_min, sigma_max)
    steps = np.log(sigma_max / sigma_min) / np.log(ladder_ratio(dims, overlap))
    return max(2, round(float(steps)) + 1)

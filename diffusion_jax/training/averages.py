"""Averages of the parameters over the steps, as weights of the steps: exponential ones and power functions.

The average after t steps is the sum over i of weight i times the parameters after step i; step 0 is the initialization.
All is float64 on the host.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64

# Standard deviation of the steps' weights, relative to the length of the training; 0.289 is the uniform average.
MAX_LENGTH = 0.28


def power_exponent(length: float) -> float:
    """Returns gamma of the power function with a relative length (Karras et al., 2024, Eq. 126 and Algorithm 2).

    Its weights after t steps are (i / t)^(gamma + 1) - ((i - 1) / t)^(gamma + 1): the parameters of the last part of
    the training, whose length grows with the training's.

    Args:
      length: Standard deviation of the weights over the training's length, sigma_rel, in (0, 0.28).
    """
    inverse = length**-2.0
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@dataclasses.dataclass(frozen=True)
class PowerFunction:
    """The average whose weights grow like a power of the step (Karras et al., 2024, Section 3.1).

    Attributes:
      length: Relative length, sigma_rel.
    """

    length: float

    def log_kept(self, steps: Any) -> Float64[np.ndarray, " n"]:
        """Returns the logarithm of what is kept of an old value over the steps up to i, up to a constant."""
        with np.errstate(divide="ignore"):
            return -(power_exponent(self.length) + 1) * np.log(np.asarray(steps, np.float64))

    def share(self, steps: Any) -> Float64[np.ndarray, " n"]:
        """Returns the share of the new parameters in the average after step i, counted from 1."""
        with np.errstate(divide="ignore"):
            log_rest = np.log1p(-1 / np.asarray(steps, np.float64))
        return -np.expm1((power_exponent(self.length) + 1) * log_rest)

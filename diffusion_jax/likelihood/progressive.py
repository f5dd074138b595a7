"""Progressive lossy coding: the rate, and the receiver's error, after each step (Ho et al., 2020, Section 4.3).

The sender transmits x_T, then x_{T-1} given x_T, and so on. The code of x_t costs L_T and the terms of the steps
before; the receiver's best guess of the image is then x0_hat(x_t).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

GRAY_LEVELS = 127.5  # Per unit of the model's range, [-1, 1].


def rate_distortion(
    prior: float, terms: Float[np.ndarray, " n"], x0_mse: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the rate, and the error of x0_hat, at the start of each step of the grid.

    Args:
      prior: L_T, in bits per dimension.
      terms: L_{t-1} of each step, from noise to data, the last L_0.
      x0_mse: Mean squared error of the x_0 predicted where each step begins, in the model's range.

    Returns:
      The rate, in bits per dimension, and the root mean squared error, in gray levels of 256.

    Example:
      >>> terms, x0_mse = np.array([0.5, 1.0]), np.array([0.04, 0.01])
      >>> rate, rmse = dj.likelihood.rate_distortion(0.1, terms, x0_mse)
      >>> rate.tolist(), rmse.round(2).tolist()
      ([0.1, 0.6], [25.5, 12.75])
    """
    sent = np.concatenate([[0.0], np.cumsum(terms[:-1])])
    return prior + sent, GRAY_LEVELS * np.sqrt(x0_mse)

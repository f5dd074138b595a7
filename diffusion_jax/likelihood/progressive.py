"""Progressive lossy coding: what the receiver knows after each step, and at what cost (Ho et al., 2020, Section 4.3).

The sender transmits x_T, then x_{T-1} given x_T, and so on. Once the receiver has x_t, that has cost L_T and the terms
of the steps before, and its best guess of the image is x0_hat(x_t).
"""

import numpy as np
from jaxtyping import Float

GRAY_LEVELS = 127.5  # Of 1 in the model's range, [-1, 1].


def rate_distortion(
    prior: float, terms: Float[np.ndarray, " n"], x0_mse: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns what has been sent when each step of the grid begins, and how far x0_hat is from the image then.

    Args:
      prior: L_T, in bits per dimension.
      terms: L_{t-1} of each step, from noise to data, the last L_0.
      x0_mse: Mean squared error of the x_0 predicted where each step begins, in the model's range.

    Returns:
      The rate, in bits per dimension, and the root mean squared error, in gray levels of 256.
    """
    sent = np.concatenate([[0.0], np.cumsum(terms[:-1])])
    return prior + sent, GRAY_LEVELS * np.sqrt(x0_mse)

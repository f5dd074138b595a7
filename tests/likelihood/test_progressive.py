"""Rate and distortion by hand."""

import numpy as np

from diffusion_jax.likelihood.progressive import rate_distortion


def test_rate_is_what_was_sent_before_the_step_and_distortion_is_in_gray_levels():
    rate, rmse = rate_distortion(0.5, np.array([1.0, 2.0, 4.0]), np.array([0.25, 0.04, 0.01]))
    np.testing.assert_allclose(rate, [0.5, 1.5, 3.5])  # L_0 is not sent: it is the distortion.
    np.testing.assert_allclose(rmse, [63.75, 25.5, 12.75])

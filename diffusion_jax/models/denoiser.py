"""The prediction of a denoiser: x0, eps, v and the score, whatever its network predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from diffusion_jax.processes import gaussian
from diffusion_jax.processes.process import Point


class Prediction(NamedTuple):
    """A prediction from x_t, in every form (`jit` drops the forms that are not used).

    Attributes:
      x0: The clean image.
      eps: The noise.
      v: v = (signal eps - std x0) / r, r^2 = signal^2 + std^2.
      score: Gradient of log q(x_t).
      fraction: Position of the log variance of a reverse step between its bounds, 0 at the posterior's, log
        beta_tilde_t, and 1 at log beta_t, not clipped; None if the network predicts none.
    """

    x0: Float[Array, " b *dims"]
    eps: Float[Array, " b *dims"]
    v: Float[Array, " b *dims"]
    score: Float[Array, " b *dims"]
    fraction: Float[Array, " b *dims"] | None = None


# (x_t, point) -> Prediction
Denoise = Callable[[Float[Array, " b *dims"], Point], Prediction]


def complete(
    point: Point,
    x0: Float[Array, " b *dims"],
    eps: Float[Array, " b *dims"],
    fraction: Float[Array, " b *dims"] | None = None,
) -> Prediction:
    """Returns the prediction in every form, from x0 and eps of the same x_t.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x0: Clean images.
      eps: Unit noise.
      fraction: Where a predicted log variance lies between its ends, in [0, 1]; None: it is not predicted.
    """
    v, score = gaussian.v_from_x0_eps(point, x0, eps), gaussian.score_from_eps(point, eps)
    return Prediction(x0, eps, v, score, fraction)

"""Identities of x_t = signal x_0 + std eps (Ho et al., 2020, Eq. 4-7; Salimans & Ho, 2022; Kingma et al., 2021).

At one point, eps and x_0 determine each other given x_t. With r^2 = signal^2 + std^2,

    x_t / r = (signal x_0 + std eps) / r          v = (signal eps - std x_0) / r

is a rotation of (x_0, eps), so its transpose gives x_0 = (signal x_t / r - std v) / r and
eps = (std x_t / r + signal v) / r. For a variance-preserving process r = 1.

Between two points s (nearer the data) and t, x_t = signal_{t|s} x_s + var_{t|s}^(1/2) z (Markov). Inserting
x_s = signal_s x_0 + std_s eps and comparing with x_t = signal_t x_0 + std_t eps gives

    signal_{t|s} = signal_t / signal_s            var_{t|s} = std_t^2 - signal_{t|s}^2 std_s^2

and Bayes' rule, a product of two normal densities in x_s, gives q(x_s | x_t, x_0) with

    mean = (signal_s var_{t|s} x_0 + signal_{t|s} std_s^2 x_t) / std_t^2
    variance = var_{t|s} std_s^2 / std_t^2.

Between neighboring steps of DDPM, var_{t|s} is beta_t and the variance is beta_tilde_t. These are differences of
numbers that float32 cannot tell apart, so they are computed in float64, on grids.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from diffusion_jax.errors import expect
from diffusion_jax.processes.process import Grid, Point, take


def per_image(values: Shaped[Array, " b"], x: Float[Array, " b *dims"]) -> Shaped[Array, " b ..."]:
    """Returns one value per image, shaped (b, 1, ..., 1) to broadcast against x."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def q_sample(
    point: Point, x0: Float[Array, " b *dims"], eps: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Returns x_t = signal x_0 + std eps ~ q(x_t | x_0), Ho et al. (2020), Eq. 4.

    Args:
      point: Noise level of each image, such as `process.at(t)`.
      x0: Clean images in [-1, 1].
      eps: Standard normal noise, drawn by the caller since it is also the target.

    Example:
      >>> process = dj.DDPM(dj.processes.schedule_from_betas([0.36]))  # Signal 0.8, std 0.6.
      >>> x0, eps = jnp.ones((1, 2)), jnp.array([[0.0, -1.0]])
      >>> dj.processes.q_sample(process.at(jnp.array([0])), x0, eps).round(3)
      Array([[0.8, 0.2]], dtype=float32)
    """
    return per_image(point.signal, x0) * x0 + per_image(point.std, x0) * eps


def x0_from_eps(
    point: Point, x_t: Float[Array, " b *dims"], eps: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Solves x_t for x_0. Where the signal is nearly 0, eps does not determine x_0: the result is finite but huge.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point.
      eps: Unit noise.
    """
    return (x_t - per_image(point.std, x_t) * eps) / per_image(point.signal, x_t)


def eps_from_x0(
    point: Point, x_t: Float[Array, " b *dims"], x0: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Solves x_t for eps; undefined at the data, where std is 0.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point.
      x0: Clean images.
    """
    return (x_t - per_image(point.signal, x_t) * x0) / per_image(point.std, x_t)


def v_from_x0_eps(
    point: Point, x0: Float[Array, " b *dims"], eps: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Returns v = (signal eps - std x_0) / r, Salimans & Ho (2022), Appendix D.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x0: Clean images.
      eps: Unit noise.
    """
    r = point.scale
    return per_image(point.signal / r, x0) * eps - per_image(point.std / r, x0) * x0


def x0_from_v(
    point: Point, x_t: Float[Array, " b *dims"], v: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Returns x_0 = (signal x_t / r - std v) / r.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point.
      v: Their v.
    """
    r = point.scale
    return per_image(point.signal / r**2, x_t) * x_t - per_image(point.std / r, x_t) * v


def eps_from_v(
    point: Point, x_t: Float[Array, " b *dims"], v: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Returns eps = (std x_t / r + signal v) / r.

    Args:
      point: Where on their way the images are: time, signal and std of each.
      x_t: Images at that point.
      v: Their v.
    """
    r = point.scale
    return per_image(point.std / r**2, x_t) * x_t + per_image(point.signal / r, x_t) * v


def score_from_eps(point: Point, eps: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
    """Returns grad log q(x_t) = -eps / std, for eps = E[eps | x_t] (Tweedie).

    Args:
      point: Where on their way the images are: time, signal and std of each.
      eps: Mean of the noise, given x_t.
    """
    return -eps / per_image(point.std, eps)


def clip_x0(x0: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
    """Limits a predicted clean image to the range of pixels, [-1, 1]."""
    return jnp.clip(x0, -1, 1)


class Steps(NamedTuple):
    """Closed forms between neighboring points t and s of a grid; arrays of shape (N,), float64 on the host.

    Attributes:
      signal: signal_{t|s}.
      variance: var_{t|s}; DDPM's beta_t.
      coef_x0: Coefficient of x_0 in the mean of q(x_s | x_t, x_0); 1 in the last step, to the data.
      coef_xt: Coefficient of x_t there; 0 in the last step.
      posterior_variance: Variance of q(x_s | x_t, x_0); DDPM's beta_tilde_t; 0 in the last step.
    """

    signal: Float[np.ndarray, " n"]
    variance: Float[np.ndarray, " n"]
    coef_x0: Float[np.ndarray, " n"]
    coef_xt: Float[np.ndarray, " n"]
    posterior_variance: Float[np.ndarray, " n"]

    @property
    def log_variance(self) -> Float[np.ndarray, " n"]:
        """log var_{t|s}; DDPM's log beta_t, finite at every step."""
        return np.log(self.variance)

    @property
    def posterior_log_variance_clipped(self) -> Float[np.ndarray, " n"]:
        """Log of the posterior variance; the last entry, log 0, is replaced by the one before.

        For a single step, it is that step's log var_{t|s}.
        """
        before = self.posterior_variance[-2:-1] if len(self.variance) > 1 else self.variance
        return np.log(np.concatenate([self.posterior_variance[:-1], before]))


def steps(grid: Grid) -> Steps:
    """Returns the closed forms between the neighbors of a grid."""
    expect("grid", grid, Grid, "a Grid, such as make_grid(process, 50)")
    signal = np.exp(grid.log_signal[:-1] - grid.log_signal[1:])
    var_t, var_s = np.square(grid.std[:-1]), np.square(grid.std[1:])
    variance = var_t - np.square(signal) * var_s
    return Steps(
        signal=signal,
        variance=variance,
        coef_x0=np.exp(grid.log_signal[1:]) * (variance / var_t),
        coef_xt=signal * (var_s / var_t),
        posterior_variance=variance * (var_s / var_t),
    )


class Posterior(NamedTuple):
    """A normal distribution of x_s, with one variance per image (shaped to broadcast) or, if learned, per dimension."""

    mean: Float[Array, " b *dims"]
    variance: Float[Array, " b *#dims"]
    log_variance: Float[Array, " b *#dims"]


def q_posterior(
    grid: Grid,
    x0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    *,
    step: Int[Array, " b"],
) -> Posterior:
    """Returns q(x_s | x_t, x_0), Ho et al. (2020), Eq. 6-7, where step i goes from point t to point s of a grid.

    In the last step, to the data, the mean is x_0 and the variance 0; the log variance is that of the step before.

    Args:
      grid: Points from noise to data, such as `make_grid(process)`.
      x0: Clean images.
      x_t: Images at point i.
      step: Step i of each image, in {0, ..., N - 1}, from noise to data; NaN outside. On DDPM's full grid,
        timestep t is step T - 1 - t.
    """
    table = steps(grid)
    coef_x0, coef_xt, variance, log_variance = (
        per_image(take(values, step), x0)
        for values in (
            table.coef_x0,
            table.coef_xt,
            table.posterior_variance,
            table.posterior_log_variance_clipped,
        )
    )
    return Posterior(coef_x0 * x0 + coef_xt * x_t, variance, log_variance)

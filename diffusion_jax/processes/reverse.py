"""The reverse step p(x_s | x_t), its variances, and its KL from the posterior (Ho et al., 2020, Section 3.2).

p has the mean of q(x_s | x_t, x_0) at the predicted x_0. Its log variance is the posterior's plus d, negative only
where a learned fraction is:

    fixed_small  d = 0                        beta_tilde_t
    fixed_large  d = log(beta_t / beta_tilde_t)      beta_t
    learned      d = fraction log(beta_t / beta_tilde_t)     (Nichol & Dhariwal, 2021, Eq. 15)

so, each dimension by itself,

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = (d + exp(-d) - 1 + exp(-d) w (x_0 - x0_hat)^2) / 2,
    w = coef_x0^2 / beta_tilde_t = signal_s^2 / std_s^2 - signal_t^2 / std_t^2.

In the last step, to the data, beta_tilde is 0 and replaced by that of the step before, and so is fixed_large's beta_t,
as in Ho et al.'s results. Only learned variances have beta_t as their upper bound in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError, choose
from diffusion_jax.processes.gaussian import Posterior, Steps, per_image, steps
from diffusion_jax.processes.process import Grid, take


def _largest(table: Steps) -> Float[np.ndarray, " n"]:
    return table.log_variance - table.posterior_log_variance_clipped


def _fixed_large(table: Steps) -> Float[np.ndarray, " n"]:
    return np.append(_largest(table)[:-1], 0.0)


def _fixed_small(table: Steps) -> Float[np.ndarray, " n"]:
    return np.zeros_like(table.variance)


# Largest d of each step of a grid.
VARIANCES: dict[str, Callable[[Steps], Float[np.ndarray, " n"]]] = {
    "fixed_large": _fixed_large,
    "fixed_small": _fixed_small,
    "learned": _largest,
}


def _excess(
    table: Steps,
    variance: str,
    step: Int[Array, " b"],
    x: Float[Array, " b *dims"],
    fraction: Float[Array, " b *dims"] | None,
) -> Float[Array, " b *#dims"]:
    """Returns d for each image (or dimension)."""
    most = per_image(take(choose("variance", variance, VARIANCES)(table), step), x)
    if variance != "learned":
        return most
    if fraction is None:
        raise InputError(
            "variance is 'learned', but the network has no channels for it; choose fixed_large or fixed_small"
        )
    return fraction * most


def p_posterior(
    grid: Grid,
    x0_hat: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    *,
    step: Int[Array, " b"],
    variance: str,
    fraction: Float[Array, " b *dims"] | None = None,
) -> Posterior:
    """Returns p(x_s | x_t), where step i goes from point t to point s of a grid.

    In the last step, to the data, the variance is 0, as a sampler adds no noise there; the log variance is that of the
    decoder.

    Args:
      grid: Points from noise to data, such as `make_grid(process)`.
      x0_hat: Clean images as predicted from x_t.
      x_t: Images at point i.
      step: Step i of each image, in {0, ..., N - 1}, from noise to data; NaN outside.
      variance: A key of `VARIANCES`.
      fraction: Position of learned log variances between their bounds, as in `Prediction`.

    Raises:
      InputError: Unknown variance, or learned without a fraction.
    """
    table = steps(grid)
    excess = _excess(table, variance, step, x_t, fraction)
    coef_x0, coef_xt, smallest, log_smallest = (
        per_image(take(values, step), x_t)
        for values in (
            table.coef_x0,
            table.coef_xt,
            table.posterior_variance,
            table.posterior_log_variance_clipped,
        )
    )
    mean = coef_x0 * x0_hat + coef_xt * x_t
    return Posterior(mean, smallest * jnp.exp(excess), log_smallest + excess)


def posterior_kl(
    grid: Grid,
    x0: Float[Array, " b *dims"],
    x0_hat: Float[Array, " b *dims"],
    *,
    step: Int[Array, " b"],
    variance: str,
    fraction: Float[Array, " b *dims"] | None = None,
) -> Float[Array, " b *dims"]:
    """Returns KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each dimension in nats, Ho et al. (2020), Eq. 5.

    Undefined (though finite) in the last step, to the data, where the decoder's term replaces it.

    Args:
      grid: Points from noise to data.
      x0: Clean images.
      x0_hat: Clean images as predicted from x_t.
      step: Step i of each image, in {0, ..., N - 1}; NaN outside.
      variance: A key of `VARIANCES`.
      fraction: Position of learned log variances between their bounds.

    Raises:
      InputError: Unknown variance, or learned without a fraction.
    """
    table = steps(grid)
    excess = _excess(table, variance, step, x0, fraction)
    weight = np.square(table.coef_x0) / np.exp(table.posterior_log_variance_clipped)
    error = per_image(take(weight, step), x0) * jnp.square(x0 - x0_hat)
    # expm1, since d is small at most steps, where exp(-d) - 1 + d would be rounding error alone.
    return (excess + jnp.expm1(-excess) + jnp.exp(-excess) * error) / 2


def prior_kl(grid: Grid, x0: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
    """Returns KL(q(x_T | x_0) || N(0, prior_std^2)) of each dimension in nats, L_T of Ho et al. (2020), Eq. 5."""
    ratio = np.square(grid.std[0] / grid.prior_std)
    constant = ratio - 1 - np.log(ratio)
    scale = np.exp(2 * grid.log_signal[0]) / grid.prior_std**2
    return (jnp.float32(constant) + jnp.float32(scale) * jnp.square(x0)) / 2

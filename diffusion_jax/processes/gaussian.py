"""The Gaussian process q and its identities (Ho et al., 2020, Eq. 4-7; Salimans & Ho, 2022, for v).

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

are a rotation of (x_0, eps), so that one of x_0, eps and v together with x_t gives the other two.
Every function takes images of any rank, the batch first, and t of shape (b,) in {0, ..., T - 1};
a t beyond that gives NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.processes.schedules import Schedule, Values


class Posterior(NamedTuple):
    """A normal distribution of x_{t-1}; one variance an image, shaped to broadcast."""

    mean: Float[Array, " b *dims"]
    variance: Float[Array, " b *#dims"]
    log_variance: Float[Array, " b *#dims"]


def per_image(values: Values, t: Int[Array, " b"], ndim: int) -> Float[Array, " b ..."]:
    """Returns values[t], shaped (b, 1, ..., 1) to broadcast against an array of ndim dimensions."""
    picked = jnp.take(jnp.asarray(values), t, mode="fill")
    return picked.reshape(t.shape + (1,) * (ndim - 1))


def q_sample(
    schedule: Schedule,
    x0: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    eps: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Returns x_t ~ q(x_t | x_0), Ho et al. (2020), Eq. 4.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

    Args:
      schedule: Variance schedule of T steps.
      x0: Clean images in [-1, 1].
      t: Timestep of each image, in {0, ..., T - 1}; the paper's t - 1.
      eps: Standard normal noise. The caller draws it: it is also the target.
    """
    signal = per_image(schedule.sqrt_alpha_bar, t, x0.ndim)
    noise = per_image(schedule.sqrt_one_minus_alpha_bar, t, x0.ndim)
    return signal * x0 + noise * eps


def q_posterior(
    schedule: Schedule,
    x0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
) -> Posterior:
    """Returns q(x_{t-1} | x_t, x_0), Ho et al. (2020), Eq. 6-7.

    At t = 0 it is x_0 itself, with variance 0 and, as log variance, that of the next step (see
    `Schedule`).
    """
    coef_x0 = per_image(schedule.posterior_mean_coef_x0, t, x0.ndim)
    coef_xt = per_image(schedule.posterior_mean_coef_xt, t, x0.ndim)
    return Posterior(
        mean=coef_x0 * x0 + coef_xt * x_t,
        variance=per_image(schedule.posterior_variance, t, x0.ndim),
        log_variance=per_image(schedule.posterior_log_variance_clipped, t, x0.ndim),
    )


def x0_from_eps(
    schedule: Schedule,
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    eps: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Solves x_t for x_0.

    Where alpha_bar is 0 (the end of jsd) eps says nothing of x_0, and this is finite but huge.
    """
    recip = per_image(schedule.sqrt_recip_alpha_bar, t, x_t.ndim)
    recipm1 = per_image(schedule.sqrt_recipm1_alpha_bar, t, x_t.ndim)
    return recip * x_t - recipm1 * eps


def eps_from_x0(
    schedule: Schedule,
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    x0: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Solves x_t for eps."""
    signal = per_image(schedule.sqrt_alpha_bar, t, x_t.ndim)
    noise = per_image(schedule.sqrt_one_minus_alpha_bar, t, x_t.ndim)
    return (x_t - signal * x0) / noise


def v_from_x0_eps(
    schedule: Schedule,
    x0: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    eps: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Returns v, Salimans & Ho (2022), Appendix D.

    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
    """
    signal = per_image(schedule.sqrt_alpha_bar, t, x0.ndim)
    noise = per_image(schedule.sqrt_one_minus_alpha_bar, t, x0.ndim)
    return signal * eps - noise * x0


def x0_from_v(
    schedule: Schedule,
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    v: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Returns x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v."""
    signal = per_image(schedule.sqrt_alpha_bar, t, x_t.ndim)
    noise = per_image(schedule.sqrt_one_minus_alpha_bar, t, x_t.ndim)
    return signal * x_t - noise * v


def eps_from_v(
    schedule: Schedule,
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    v: Float[Array, " b *dims"],
) -> Float[Array, " b *dims"]:
    """Returns eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v."""
    signal = per_image(schedule.sqrt_alpha_bar, t, x_t.ndim)
    noise = per_image(schedule.sqrt_one_minus_alpha_bar, t, x_t.ndim)
    return noise * x_t + signal * v


def score_from_eps(
    schedule: Schedule, eps: Float[Array, " b *dims"], t: Int[Array, " b"]
) -> Float[Array, " b *dims"]:
    """Returns grad log q(x_t) = -eps / sqrt(1 - alpha_bar_t), for eps = E[eps | x_t] (Tweedie)."""
    return -eps / per_image(schedule.sqrt_one_minus_alpha_bar, t, eps.ndim)


def clip_x0(x0: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
    """Limits a predicted clean image to the range of pixels, [-1, 1]."""
    return jnp.clip(x0, -1, 1)

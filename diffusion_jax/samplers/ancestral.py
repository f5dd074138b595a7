"""Ancestral sampling (Ho et al., 2020, Algorithm 2): each step draws from p(x_{t-1} | x_t)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Denoise
from diffusion_jax.errors import choose
from diffusion_jax.processes.gaussian import clip_x0, per_image, q_posterior
from diffusion_jax.processes.schedules import Schedule, Values
from diffusion_jax.samplers.loop import Sampler, Step, image_normal


def _fixed_large(schedule: Schedule) -> Values:
    return schedule.fixed_large_log_variance


def _fixed_small(schedule: Schedule) -> Values:
    return schedule.posterior_log_variance_clipped


# Log variance of p(x_{t-1} | x_t), Section 3.2: beta_t and beta_tilde_t.
VARIANCES = {"fixed_large": _fixed_large, "fixed_small": _fixed_small}


def ancestral(schedule: Schedule, *, variance: str = "fixed_large", clip: bool = True) -> Sampler:
    """Returns the update x_{t-1} = mu_t(x_t, x0_hat) + exp(log variance / 2) z, with z = 0 at t =
    0.

    mu_t is the mean of q(x_{t-1} | x_t, x_0) at the predicted x_0, Eq. 6-7. For fewer steps than
    the model was trained with, give `respace(schedule, num_steps)` to this and to the denoiser.

    Args:
      schedule: Variance schedule; its T is the number of steps.
      variance: fixed_large (beta_t) or fixed_small (beta_tilde_t).
      clip: Whether x0_hat is limited to [-1, 1] first.

    Raises:
      InputError: Unknown variance.
    """
    log_variance = choose("variance", variance, VARIANCES)(schedule)

    def step(
        denoise: Denoise,
        x_t: Float[Array, " b *dims"],
        t: Int[Array, " b"],
        keys: Key[Array, " b"],
    ) -> Step:
        x0_hat = denoise(x_t, t).x0
        if clip:
            x0_hat = clip_x0(x0_hat)
        mean = q_posterior(schedule, x0_hat, x_t, t).mean
        std = jnp.exp(per_image(log_variance, t, x_t.ndim) / 2)
        noisy = (t > 0).reshape(std.shape)
        noise = image_normal(keys, x_t.shape[1:])
        return Step(mean + jnp.where(noisy, std, 0) * noise, x0_hat)

    return Sampler(schedule.num_timesteps, step)

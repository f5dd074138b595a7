"""The variational bound on -log p(x_0), term by term (Ho et al., 2020, Section 3; Eq. 5).

    L_T + sum over t > 1 of L_{t-1} + L_0,

where L_T is KL(q(x_T | x_0) || p(x_T)), L_{t-1} is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at an x_t drawn from
q(x_t | x_0), and L_0 is -log p(x_0 | x_1). The steps are those of any grid, so "t - 1" is the point after t. Read as a
progressive code, L_T and the L_{t-1} are the rate and L_0 is the distortion (Section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key
from scipy.special import expit

from diffusion_jax.errors import InputError, expect
from diffusion_jax.keys import BoundStream, at_time, fold_in, image_normal
from diffusion_jax.likelihood.decoder import Decoder, check_levels, discretized_gaussian
from diffusion_jax.models.denoiser import Denoise, Prediction
from diffusion_jax.processes.gaussian import per_image, q_sample
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.reverse import p_posterior, posterior_kl, prior_kl
from diffusion_jax.reporting.progress import report

DATA_VARIANCE = 0.25  # Pixels for which the sample of terms is best; it is unbiased for any.
LONGEST = 50.0  # Longest step in logsnr, as at the end of jsd.


class VLB(NamedTuple):
    """Terms of the bound of each image, in bits per dimension, from noise to data.

    Attributes:
      prior: L_T.
      terms: L_{t-1} of each step, the last one L_0.
      steps: Index of the step in the grid, 0 at the noise.
      x0_mse: Mean squared error of the x_0 predicted where the step begins.
      eps_mse: The same for eps.
      weights: Number of steps that each term stands for, itself included: the reciprocal of its expected number of
        draws; 1 if all terms are there.
    """

    prior: Float[Array, " b"]
    terms: Float[Array, " k b"]
    steps: Int[Array, " k b"]
    x0_mse: Float[Array, " k b"]
    eps_mse: Float[Array, " k b"]
    weights: Float[Array, " k b"]

    @property
    def distortion(self) -> Float[Array, " b"]:
        """L_0."""
        return self.terms[-1]

    @property
    def rate(self) -> Float[Array, " b"]:
        """L_T + ... + L_1, or an unbiased estimate of it."""
        return self.prior + self._weighted.sum(0)

    @property
    def total(self) -> Float[Array, " b"]:
        """The bound on -log2 p(x_0) per dimension, or an unbiased estimate of it."""
        return self.rate + self.distortion

    @property
    def rate_stderr(self) -> Float[Array, " b"]:
        """Standard error of the rate, for the times and the noise that were drawn; NaN with fewer than three terms.

        From the differences within pairs of neighboring terms (collapsed strata: Cochran, 1977, Section 5A.12), so
        that a trend over the steps counts as noise: on average its square is too large rather than too small. With few
        pairs it is itself uncertain: for intervals, use Student's t with half as many degrees of freedom as terms.
        """
        count = len(self.terms) - 1
        if count < 2:
            return jnp.full_like(self.prior, jnp.nan)
        differences = jnp.square(jnp.diff(self._weighted, axis=0))
        # A term without a partner is compared with one that already has a partner.
        alone = differences[-1] if count % 2 else 0.0
        return jnp.sqrt(differences[::2].sum(0) + alone)

    @property
    def _weighted(self) -> Float[Array, " j b"]:
        return self.weights[:-1] * self.terms[:-1]


def to_bits(nats: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    """Returns bits per dimension of each image: the mean over its dimensions, divided by ln 2."""
    return nats.mean(tuple(range(1, nats.ndim))) / math.log(2)


def step_kl(
    grid: Grid,
    x0: Float[Array, " b *dims"],
    prediction: Prediction,
    step: Int[Array, " b"],
    variance: str,
) -> Float[Array, " b"]:
    """Returns L_{t-1} of step i of each image, for a prediction where it begins; not for the last step."""
    kl = posterior_kl(
        grid, x0, prediction.x0, step=step, variance=variance, fraction=prediction.fraction
    )
    return to_bits(kl)


def reconstruction(
    grid: Grid,
    x0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    prediction: Prediction,
    variance: str,
    decoder: Decoder,
) -> Float[Array, " b"]:
    """Returns L_0 = -log2 p(x_0 | x_t), where x_t is at the last point before the data."""
    step = jnp.full(len(x0), grid.num_steps - 1)
    p = p_posterior(
        grid, prediction.x0, x_t, step=step, variance=variance, fraction=prediction.fraction
    )
    return to_bits(-decoder(x0, p.mean, p.log_variance))


def term(
    grid: Grid,
    x0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    prediction: Prediction,
    step: Int[Array, " b"],
    variance: str,
    decoder: Decoder = discretized_gaussian,
) -> Float[Array, " b"]:
    """Returns L_{t-1} of step i of each image, which for the last step is L_0; x_t is where the step begins."""
    is_last = step == grid.num_steps - 1
    kl = step_kl(grid, x0, prediction, step, variance)
    # Elsewhere x0_hat may be so far off that the gradient of the decoder, though not taken, would not be finite.
    near = jnp.where(per_image(is_last, x0), prediction.x0, x0)
    last = reconstruction(grid, x0, x_t, prediction._replace(x0=near), variance, decoder)
    return jnp.where(is_last, last, kl)


def variational_bound(
    denoise: Denoise,
    grid: Grid,
    x0: Float[Array, " b *dims"],
    keys: Key[Array, " b"],
    *,
    variance: str = "fixed_large",
    decoder: Decoder = discretized_gaussian,
    num_terms: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> VLB:
    """Returns the bound on -log2 p(x_0), term by term; all steps, or a stratified sample of them.

    One `lax.scan`; call inside `jit`. The noise of an image depends on its key and the time alone,
    so neither the batch nor the devices change it.

    Args:
      denoise: (x_t, point) -> Prediction. Ho et al. clip x0 (`clip_denoised`).
      grid: Points from noise to data: `make_grid(process)`, or fewer.
      x0: Clean images; for `discretized_gaussian` in {-1, -1 + 1/127.5, ..., 1}.
      keys: One key per image.
      variance: A key of `VARIANCES`.
      decoder: (x0, mean, log_variance) -> log-likelihood of each dimension in nats.
      num_terms: Number K of terms per image. L_0 is always one of them; the others are drawn from the N - 1 other
        steps, one from each of K - 1 parts, which are shorter where terms are larger (`drawn_shares`). None: all N.
      progress: Host function, called with the number of terms done; see `report`.

    Raises:
      InputError: Images that are not floats, or that `discretized_gaussian` cannot count, unless they are traced;
        num_terms outside {2, ..., N} (1 if the grid has one step); unknown variance, or learned for a network without.

    Example:
      >>> def denoise(x_t, point):  # Of data that are black.
      ...     x0 = jnp.full_like(x_t, -1.0)
      ...     return dj.models.complete(point, x0, dj.processes.eps_from_x0(point, x_t, x0))
      >>> grid, keys = dj.make_grid(dj.VP(), 10), dj.image_keys(0, np.arange(2))
      >>> black = jnp.full((2, 4, 4, 1), -1.0)
      >>> bound = dj.variational_bound(denoise, grid, black, keys, variance="fixed_small")
      >>> bound.terms.shape, bool((bound.rate < 0.01).all())  # What is known costs nearly nothing.
      ((10, 2), True)
    """
    expect("denoise", denoise, Callable, "a denoiser, such as DiffusionModel.denoiser returns")
    expect("grid", grid, Grid, "a Grid, such as make_grid(process)")
    last = grid.num_steps - 1
    count = check_num_terms(num_terms, grid.num_steps) - 1
    _check_images(x0, decoder)
    whole = count == last
    steps, weights = _all(keys, last) if whole else _strata(keys, count, drawn_shares(grid))

    def pass_(_: None, xs: tuple[Array, Array]) -> tuple[None, tuple]:
        k, step = xs
        point = grid.at(step)
        # Two parts of a sample may draw the same step, but not with the same noise.
        own = keys if whole else fold_in(keys, BoundStream.TERMS + k)
        eps = image_normal(at_time(own, point.time), x0.shape[1:])
        x_t = q_sample(point, x0, eps)
        prediction = denoise(x_t, point)
        value = jax.lax.cond(
            k == count,
            lambda: reconstruction(grid, x0, x_t, prediction, variance, decoder),
            lambda: step_kl(grid, x0, prediction, step, variance),
        )
        if progress is not None:
            report(progress, k + 1, max(1, count // 100), count + 1)
        return None, (value, _mse(x0 - prediction.x0), _mse(eps - prediction.eps))

    _, (terms, x0_mse, eps_mse) = jax.lax.scan(pass_, None, (jnp.arange(count + 1), steps))
    prior = to_bits(prior_kl(grid, x0))
    return VLB(prior, terms, steps, x0_mse, eps_mse, weights)


def _check_images(x0: Array, decoder: Decoder) -> None:
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        raise InputError(
            f"x0 has dtype {x0.dtype}; give images in [-1, 1], such as to_model_range(images)"
        )
    if decoder is discretized_gaussian and not isinstance(x0, Tracer):
        check_levels(x0)


def check_num_terms(num_terms: int | None, num_steps: int) -> int:
    """Returns the number of terms per image: `num_terms`, or all of the grid's steps.

    Raises:
      InputError: num_terms outside {2, ..., num_steps}.
    """
    if num_terms is None:
        return num_steps
    fewest = min(2, num_steps)
    if not fewest <= num_terms <= num_steps:
        raise InputError(
            f"num_terms is {num_terms!r}; it must be an integer from {fewest} to {num_steps}, the steps"
        )
    return num_terms


def drawn_shares(grid: Grid) -> Float[np.ndarray, " m"]:
    """Returns the share of each step before the last in a sample of the terms; sums to 1.

    Half is spread evenly over the steps, so that no term weighs more than twice as much as in an even sample. The other
    half is proportional to the size that terms have for white data of variance 1/4, (SNR_s / SNR_t - 1) / 2 times
    Var(eps | x_t): otherwise a few large terms near the data dominate an estimate that seldom draws one.
    """
    logsnr = grid.logsnr[:-1]
    left = expit(logsnr[:-1] + np.log(DATA_VARIANCE))
    sizes = np.expm1(np.minimum(np.diff(logsnr), LONGEST)) * left
    even = np.full(len(sizes), 1 / len(sizes))
    return (sizes / sizes.sum() + even) / 2 if sizes.sum() > 0 else even


def _all(keys: Key[Array, " b"], last: int) -> tuple[Int[Array, " k b"], Float[Array, " k b"]]:
    """Returns every step for each key, with weights of 1."""
    shape = last + 1, len(keys)
    return jnp.broadcast_to(jnp.arange(last + 1)[:, None], shape), jnp.ones(shape)


def _strata(
    keys: Key[Array, " b"], count: int, shares: Float[np.ndarray, " m"]
) -> tuple[Int[Array, " k b"], Float[Array, " k b"]]:
    """Returns one step from each of `count` equal parts of the shares, and the last, with their weights."""
    last = len(shares)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (count,)), out_axes=1)
    offset = uniform(fold_in(keys, BoundStream.TIMES))
    position = (jnp.arange(count)[:, None] + offset) / count
    step = jnp.searchsorted(jnp.asarray(np.cumsum(shares), jnp.float32), position, side="right")
    drawn = jnp.concatenate([step, jnp.full((1, len(keys)), last)]).astype(jnp.int32)
    drawn = drawn.at[:-1].min(last - 1)  # The sum of all shares is 1 up to rounding.
    return drawn, jnp.asarray(np.append(1 / (count * shares), 1.0), jnp.float32)[drawn]


def _mse(error: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    return jnp.square(error).mean(tuple(range(1, error.ndim)))

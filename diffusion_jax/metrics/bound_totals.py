"""Totals of the variational bound over the images of a split, with standard errors, and its terms step by step."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.likelihood.progressive import GRAY_LEVELS
from diffusion_jax.likelihood.vlb import VLB
from diffusion_jax.metrics.base import MeanStdErr, Shard, mean_stderr

SUMS = "count", "terms", "squares", "x0_errors", "eps_errors", "not_finite", "weighted"  # By step.


@dataclasses.dataclass(frozen=True)
class BoundShard(Shard):
    """The contribution of some images, in float64; sums over images are by step of the grid, noise first.

    Attributes:
      prior: L_T of each image, in bits per dimension.
      rate: L_T + ... + L_1 of each image.
      distortion: L_0 of each image.
      x0_mse: Mean squared error of each image's x_0 as predicted at the last point before the data.
      count: Number of finite terms of each step.
      terms: Sum of these.
      squares: Sum of their squares.
      x0_errors: Sum of the squared errors of x_0 as predicted where the step begins.
      eps_errors: The same for eps.
      not_finite: Number of terms of each step that are not finite.
      weighted: Sum of the finite terms of each step, each times the number of steps that it stands for.
    """

    prior: Float[np.ndarray, " b"]
    rate: Float[np.ndarray, " b"]
    distortion: Float[np.ndarray, " b"]
    x0_mse: Float[np.ndarray, " b"]
    count: Int[np.ndarray, " n"]
    terms: Float[np.ndarray, " n"]
    squares: Float[np.ndarray, " n"]
    x0_errors: Float[np.ndarray, " n"]
    eps_errors: Float[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]
    weighted: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """The bound of the images of a split, in bits per dimension.

    Attributes:
      total: The bound on -log2 p(x_0): rate + distortion.
      rate: L_T + ... + L_1.
      prior: L_T.
      distortion: L_0.
      rmse: Root of the mean squared error of x_0 as predicted at the last point before the data, in gray levels.
      num_images: Number of images.
      terms: Mean of each step's L_{t-1}, from noise to data, the last L_0; NaN for a step with a term that is not
        finite, or without draws.
      terms_stderr: Its standard error over the images.
      contributions: Contribution of each step to the bound: its mean term or, for sampled terms, an unbiased
        estimate of it, 0 for a step without draws. All but the last add up to rate - prior.
      x0_mse: Mean squared error of x_0 as predicted where the step begins, in the model's range [-1, 1].
      eps_mse: The same for eps.
      count: Number of finite terms of each step.
      not_finite: Number of terms of each step that are not finite.
    """

    total: MeanStdErr
    rate: MeanStdErr
    prior: MeanStdErr
    distortion: MeanStdErr
    rmse: MeanStdErr
    num_images: int
    terms: Float[np.ndarray, " n"]
    terms_stderr: Float[np.ndarray, " n"]
    contributions: Float[np.ndarray, " n"]
    x0_mse: Float[np.ndarray, " n"]
    eps_mse: Float[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]


def shard(indices: Int[np.ndarray, " b"], bound: VLB, num_steps: int) -> BoundShard:
    """Returns the contribution of these images.

    Args:
      indices: Indices of the images.
      bound: Their bound, on the host.
      num_steps: Number of steps of the grid.
    """
    terms, x0_mse, eps_mse = (
        np.asarray(values, np.float64) for values in (bound.terms, bound.x0_mse, bound.eps_mse)
    )
    prior = np.asarray(bound.prior, np.float64)
    weighted = np.asarray(bound.weights, np.float64) * terms
    finite = np.isfinite(terms)
    steps = np.asarray(bound.steps)

    def by_step(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(steps[where], weights=values[where], minlength=num_steps)

    return BoundShard(
        indices=np.asarray(indices),
        prior=prior,
        rate=prior + weighted[:-1].sum(0),
        distortion=terms[-1],
        x0_mse=x0_mse[-1],
        count=np.bincount(steps[finite], minlength=num_steps),
        terms=by_step(terms, finite),
        squares=by_step(np.square(terms), finite),
        x0_errors=by_step(x0_mse, finite),
        eps_errors=by_step(eps_mse, finite),
        not_finite=np.bincount(steps[~finite], minlength=num_steps),
        weighted=by_step(weighted, finite),
    )


def can_be(shard: BoundShard) -> bool:
    """Returns whether a shard from a file can be a result of `shard`: every image has its L_0."""
    drawn = shard.count + shard.not_finite
    sums = np.stack([shard.terms, shard.squares, shard.x0_errors, shard.eps_errors, shard.weighted])
    return bool(
        min(shard.count.min(), shard.not_finite.min(), shard.squares.min()) >= 0
        and drawn[-1] == len(shard.indices)
        and not np.isnan(sums[:2]).any()
    )


def combine(shards: list[BoundShard]) -> BitsPerDim:
    """Returns the means over all images of some shards."""
    prior, rate, distortion, x0_mse = (
        np.concatenate([getattr(shard, name) for shard in shards])
        for name in ("prior", "rate", "distortion", "x0_mse")
    )
    count, terms, squares, x0_errors, eps_errors, not_finite, weighted = (
        np.sum([getattr(shard, name) for shard in shards], axis=0) for name in SUMS
    )
    mse = mean_stderr(x0_mse)
    rmse = np.sqrt(mse.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.where((count > 0) & (not_finite == 0), count, np.nan)
        mean = terms / known
        variance = np.maximum(squares / known - np.square(mean), 0) * known / (known - 1)
        return BitsPerDim(
            total=mean_stderr(rate + distortion),
            rate=mean_stderr(rate),
            prior=mean_stderr(prior),
            distortion=mean_stderr(distortion),
            # The root's slope at the mean: d sqrt(m) = dm / (2 sqrt(m)).
            rmse=MeanStdErr(
                float(GRAY_LEVELS * rmse), float(GRAY_LEVELS * mse.stderr / np.float64(2 * rmse))
            ),
            num_images=len(prior),
            terms=mean,
            terms_stderr=np.sqrt(variance / known),
            contributions=np.where(not_finite > 0, np.nan, weighted / len(prior)),
            x0_mse=x0_errors / known,
            eps_mse=eps_errors / known,
            count=count,
            not_finite=not_finite,
        )

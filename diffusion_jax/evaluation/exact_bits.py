"""Bits per dimension of the images of a split by the exact likelihood of the probability-flow ODE."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax.evaluation.parts import Estimate, Figure, Part, estimate
from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.exact import Likelihood, bits_per_dim


@dataclasses.dataclass(frozen=True)
class ExactPart(Part):
    """What some images contribute, a row for each dequantisation.

    Attributes:
      bits: Bits per dimension, float64; NaN where the ODE was not solved.
      evaluations: Evaluations of the field.
      finished: Whether the ODE was solved.
      reached: The log(std / signal) that its solution reached.
    """

    bits: Float[np.ndarray, "k b"]
    evaluations: Int[np.ndarray, "k b"]
    finished: Bool[np.ndarray, "k b"]
    reached: Float[np.ndarray, "k b"]


@dataclasses.dataclass(frozen=True)
class ExactBits:
    """Bits per dimension of the images of a split.

    Attributes:
      total: Mean over the images, of each the mean over its dequantisations. The standard error is that over the
        images: it has in it what the dequantisations and probes add.
      of_estimator: Standard error of the total if the images were the same, but dequantisations and probes others; NaN
        for one dequantisation.
      bits: Mean of each image, in the order of their indices.
      evaluations: Mean number of evaluations of the field.
      most_evaluations: The largest number.
      unfinished: Number of solutions that did not reach the prior; the total is NaN if there is one.
      least_sigma: The smallest std / signal that such a one reached; NaN if there is none.
    """

    total: Estimate
    of_estimator: float
    bits: Float[np.ndarray, " n"]
    evaluations: float
    most_evaluations: int
    unfinished: int
    least_sigma: float


def combine(parts: list[ExactPart]) -> ExactBits:
    """Returns the means over all images of some parts."""
    order = np.argsort(np.concatenate([part.indices for part in parts]))
    bits, evaluations, finished, reached = (
        np.concatenate([getattr(part, name) for part in parts], axis=1)[:, order]
        for name in ("bits", "evaluations", "finished", "reached")
    )
    count, num_images = bits.shape
    of_estimator = np.nan
    if count > 1:
        of_estimator = float(np.sqrt(bits.var(axis=0, ddof=1).sum() / count) / num_images)
    return ExactBits(
        total=estimate(bits.mean(0)),
        of_estimator=of_estimator,
        bits=bits.mean(0),
        evaluations=float(evaluations.mean()),
        most_evaluations=int(evaluations.max()),
        unfinished=int((~finished).sum()),
        least_sigma=float(np.exp(reached[~finished].min())) if not finished.all() else np.nan,
    )


def exact_figure(
    likelihood: Callable[..., Likelihood], num_dequantizations: int, key: Key[Array, ""]
) -> Figure[ExactPart, ExactBits]:
    """Returns the exact likelihood of a split's images as what `parts.make_measure` measures.

    Args:
      likelihood: (params, x0, labels, keys) -> Likelihood of one dequantisation of each image, to be compiled; x0 in
        [-1, 1], labels may be None.
      num_dequantizations: How many of each image, one after the other.
      key: Decides dequantisations and probes.
    """

    def compute(params: Any, x0: Array, labels: Any, indices: Array) -> tuple[Array, ...]:
        dims = math.prod(x0.shape[1:])

        def one(k: Int[Array, ""]) -> tuple[Array, ...]:
            keys = indexed(jax.random.fold_in(key, k), indices)
            result = likelihood(params, x0, labels, keys)
            return tuple(result._replace(log_likelihood=bits_per_dim(result.log_likelihood, dims)))

        return jax.lax.map(one, jnp.arange(num_dequantizations))

    def part_of(indices: Any, bits: Any, *others: Any) -> ExactPart:
        return ExactPart(indices, np.asarray(bits, np.float64), *others)

    return Figure(
        compute=compute,
        axes=(1, 1, 1, 1),
        part=ExactPart,
        part_of=part_of,
        fits=lambda part: (
            len(part.bits) == num_dequantizations and bool((part.evaluations >= 0).all())
        ),
        combine=combine,
    )

"""Averages of the parameters over the steps, as weights of the steps, and their reconstruction from other averages.

The average after t steps is the sum over i of weight i times the parameters after step i; step 0 is the initialization.
Saved averages with known weights can be added up so that the sum has nearly any other weights (Karras et al., 2024,
Section 3.2 and Appendix C). All is float64 on the host.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float64

# Standard deviation of the steps' weights, relative to the length of the training; 0.289 is the uniform average.
MAX_LENGTH = 0.28
WARMUP = 9  # The decay of an exponential average rises as k / (k + 9).

# Least squares weigh a coefficient like an error of this share of the target's weights: a sum of huge numbers of
# either sign would fit a little better, and amplify the rounding of the saved averages.
RIDGE = 1e-5
_STEPS_AT_ONCE = 2**18


@runtime_checkable
class Profile(Protocol):
    """An average: how the weights of the steps go on from step to step.

    With s_i the share of the new parameters in step i, its weight after t steps is s_i (1 - s_(i+1)) ... (1 - s_t).
    """

    def share(self, steps: Any) -> Any:
        """Returns the share of the new parameters in steps i, counted from 1."""
        ...

    def log_kept(self, steps: Any) -> Any:
        """Returns the logarithm of the product of 1 - share up to steps i, up to a constant."""
        ...


@dataclasses.dataclass(frozen=True)
class PowerFunction:
    """The average whose weights grow like a power of the step (Karras et al., 2024, Section 3.1).

    Attributes:
      length: Relative length, sigma_rel: the standard deviation of the weights over the training's length.
    """

    length: float

    def share(self, steps: Any) -> Any:
        """Returns the share of the new parameters in steps i, counted from 1."""
        with np.errstate(divide="ignore"):
            return -np.expm1((power_exponent(self.length) + 1) * np.log1p(-1 / np.float64(steps)))

    def log_kept(self, steps: Any) -> Any:
        """Returns the logarithm of the product of 1 - share up to steps i, up to a constant."""
        with np.errstate(divide="ignore"):
            return -(power_exponent(self.length) + 1) * np.log(np.float64(steps))


@dataclasses.dataclass(frozen=True)
class Exponential:
    """The average in which what is old loses the same share in every step.

    Attributes:
      decay: What an old weight is multiplied by, in (0, 1).
      warmup: Whether the decay of step i is at most i / (i + 9).
    """

    decay: float
    warmup: bool = True

    def share(self, steps: Any) -> Any:
        """Returns the share of the new parameters in steps i, counted from 1."""
        share = np.full(np.shape(steps), 1 - self.decay)
        return np.maximum(share, WARMUP / (WARMUP + np.float64(steps))) if self.warmup else share

    def log_kept(self, steps: Any) -> Any:
        """Returns the logarithm of the product of 1 - share up to steps i, up to a constant."""
        steps = np.float64(steps)
        if not self.warmup:
            return steps * np.log(self.decay)
        # The product of j / (j + 9) telescopes: up to step i, its denominator is (i + 1) ... (i + 9).
        warm = np.minimum(steps, np.floor(WARMUP * self.decay / (1 - self.decay)))
        rising = sum(np.log(warm + m) for m in range(1, WARMUP + 1))
        return (steps - warm) * np.log(self.decay) - rising


@functools.cache
def power_exponent(length: float) -> float:
    """Returns gamma of the power function with a relative length (Karras et al., 2024, Eq. 126 and Algorithm 2).

    Its weights after t steps are (i / t)^(gamma + 1) - ((i - 1) / t)^(gamma + 1): the parameters of the last part of
    the training, whose length grows with the training's.

    Args:
      length: Standard deviation of the weights over the training's length, sigma_rel, in (0, 0.28).
    """
    inverse = length**-2.0
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def step_weights(profile: Profile, step: int) -> Float64[np.ndarray, " steps"]:
    """Returns the weights of steps 0 to t of the average after t steps; their sum is 1.

    Args:
      profile: The average, such as `Exponential(0.999)`.
      step: Number t of steps.
    """
    kept = np.exp(profile.log_kept(step) - profile.log_kept(np.arange(step + 1)))
    return kept * np.append(1, profile.share(np.arange(1, step + 1)))


@dataclasses.dataclass(frozen=True)
class Fit:
    """A sum of saved averages in place of another average.

    Attributes:
      coefficients: Factor of each saved average; their sum is 1.
      error: Norm of the difference of the steps' weights, relative to that of the wanted weights. Of parameters that
        are independent noise in each step, the average is off by this share of its own standard deviation.
      amplification: Norm of the coefficients, by which the rounding of the saved averages is multiplied.
    """

    coefficients: Float64[np.ndarray, " n"]
    error: float
    amplification: float


def fit(saved: Sequence[tuple[Profile, int]], target: Profile, step: int) -> Fit:
    """Returns the sum of saved averages whose weights of the steps are nearest to those of a target (least squares).

    The sum of the coefficients is held at 1, so that parameters that do not change are reconstructed as they are.

    Args:
      saved: Profile and step of each saved average; none is later than `step`.
      target: The wanted average,
      step: after this step.
    """
    matrix, wanted = _compressed(saved, target, step)
    norm = np.linalg.norm(wanted)
    # The last coefficient is 1 - the sum of the others.
    others = np.vstack([np.eye(len(saved) - 1), -np.ones(len(saved) - 1)])
    last = np.append(np.zeros(len(saved) - 1), 1.0)
    weighed = np.vstack([matrix, RIDGE * norm * np.eye(len(saved))])
    rest = np.append(wanted, np.zeros(len(saved))) - weighed @ last
    coefficients = others @ np.linalg.lstsq(weighed @ others, rest, rcond=None)[0] + last
    error = np.linalg.norm(matrix @ coefficients - wanted) / norm
    return Fit(coefficients, float(error), float(np.linalg.norm(coefficients)))


def _compressed(
    saved: Sequence[tuple[Profile, int]], target: Profile, step: int
) -> tuple[Float64[np.ndarray, "rows n"], Float64[np.ndarray, " rows"]]:
    """Returns a small matrix and vector with the inner products of all steps' weights, of the saved and the target.

    Between two saved steps, the weights of all averages of one profile are multiples of one another. So the steps there
    are replaced by the few rows of a QR decomposition, which unlike the Gram matrix does not square the condition.
    """
    profiles = list(dict.fromkeys(profile for profile, _ in saved))
    steps = np.array([step for _, step in saved])
    column = np.array([profiles.index(profile) for profile, _ in saved])
    at_saved = np.array([profile.log_kept(step) for profile, step in saved])

    def kept(edge: int) -> tuple[Float64[np.ndarray, " n"], Any]:
        """What is kept of the weights after a step in each saved average, 0 if that is of before, and in the target."""
        logs = at_saved - np.array([p.log_kept(edge) for p in profiles])[column]
        of_target = np.exp(target.log_kept(step) - target.log_kept(edge))
        return np.where(steps >= edge, np.exp(np.minimum(logs, 0)), 0), of_target

    first, of_target = kept(0)
    parts, wanted = [first], [of_target]  # Of the initialization.
    edges = sorted({0, step, *steps.tolist(), *range(0, step, _STEPS_AT_ONCE)})
    for start, end in zip(edges, edges[1:], strict=False):
        within = np.arange(start + 1, end + 1)
        shapes = [
            p.share(within) * np.exp(p.log_kept(end) - p.log_kept(within))
            for p in (*profiles, target)
        ]
        rows: np.ndarray = np.asarray(np.linalg.qr(np.stack(shapes, 1), mode="r"))
        factors, of_target = kept(end)
        parts.append(rows[:, column] * factors)
        wanted.append(rows[:, -1] * of_target)
    return np.vstack(parts), np.hstack(wanted)


def weighted_sum(trees: Iterable[Any], coefficients: Iterable[float]) -> Any:
    """Returns the sum of parameter trees times coefficients, added up in float64, with the arrays' own type.

    Args:
      trees: The trees; only one at a time is needed.
      coefficients: Factor of each.
    """
    total, types = None, None
    for tree, factor in zip(trees, coefficients, strict=True):
        types = jax.tree.map(lambda x: x.dtype, tree) if types is None else types
        part = jax.tree.map(lambda x, c=factor: c * np.asarray(x, np.float64), tree)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda x, dtype: x.astype(dtype), total, types)

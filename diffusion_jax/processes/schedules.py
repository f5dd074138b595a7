"""Variance schedules beta_t and the arrays derived from them (Ho et al., 2020, Sections 2 and 3.2).

Row t of every array, t in {0, ..., T - 1}, is the paper's step t + 1: betas[0] is beta_1. The clean image, with
alpha_bar 1, precedes the first step. A `Schedule` holds log alpha_bar in float64, from which all else is computed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import InputError, choose, reason
from diffusion_jax.processes.gaussian import Steps, steps
from diffusion_jax.processes.grid import timesteps
from diffusion_jax.processes.process import SMALLEST, Grid

# Keeps every coefficient finite in float32, even where alpha_bar is 0 (the end of jsd) or underflows. The capped
# cosine of a million steps ends at -34, so ordinary schedules are not affected.
_MAX_ABS_LOGSNR = -2 * math.log(SMALLEST)

Values = Float[np.ndarray | Array, " T"]
Row = Float[np.ndarray, " T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """A variance schedule of T steps: a pytree of (T,) arrays. `schedule_arrays` derives all others.

    Attributes:
      log_alpha_bar: log of alpha_bar_t, the product of 1 - beta_s over s <= t; float64 on the host.
      timesteps: The time that the network is given at step t; 0, ..., T - 1 unless respaced.
    """

    log_alpha_bar: Values
    timesteps: Values

    @property
    def num_timesteps(self) -> int:
        """Number T of steps."""
        return self.log_alpha_bar.shape[0]

    def __repr__(self) -> str:
        """Returns T, and the first and the last alpha_bar if they are known."""
        if not isinstance(self.log_alpha_bar, np.ndarray):
            return f"Schedule(log_alpha_bar={self.log_alpha_bar!r}, ...)"
        first, last = np.exp(self.log_alpha_bar[[0, -1]])
        return f"Schedule({self.num_timesteps} steps, alpha_bar {first:g} to {last:g})"


class ScheduleArrays(NamedTuple):
    """The arrays of Ho et al. (2020), of shape (T,), float64 on the host.

    If T = 1 there is no second step, and both log variances that use it are log beta of the only step.

    Attributes:
      betas: beta_t, the variance of the noise that step t adds, in (0, 1].
      log_betas: log beta_t at every step, the first included: the upper end of learned variances.
      alphas: alpha_t = 1 - beta_t.
      alpha_bar: Product of alpha_s over s <= t.
      alpha_bar_prev: alpha_bar of step t - 1; 1 at t = 0.
      sqrt_alpha_bar: Scale of x_0 in x_t.
      sqrt_one_minus_alpha_bar: Standard deviation of the noise in x_t.
      sqrt_recip_alpha_bar: sqrt(1 / alpha_bar).
      sqrt_recipm1_alpha_bar: sqrt(1 / alpha_bar - 1).
      posterior_mean_coef_x0: Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0), Eq. 7; 1 at t = 0.
      posterior_mean_coef_xt: Coefficient of x_t there; 0 at t = 0.
      posterior_variance: Variance beta_tilde_t of q(x_{t-1} | x_t, x_0), Eq. 7; 0 at t = 0.
      posterior_log_variance_clipped: Its log; the first entry, log 0, is replaced by the second.
      fixed_large_log_variance: log beta_t; the first entry is replaced by the second step's log beta_tilde.
      logsnr: log(alpha_bar / (1 - alpha_bar)), limited to [-40, 40].
    """

    betas: Row
    log_betas: Row
    alphas: Row
    alpha_bar: Row
    alpha_bar_prev: Row
    sqrt_alpha_bar: Row
    sqrt_one_minus_alpha_bar: Row
    sqrt_recip_alpha_bar: Row
    sqrt_recipm1_alpha_bar: Row
    posterior_mean_coef_x0: Row
    posterior_mean_coef_xt: Row
    posterior_variance: Row
    posterior_log_variance_clipped: Row
    fixed_large_log_variance: Row
    logsnr: Row


def schedule_arrays(schedule: Schedule) -> ScheduleArrays:
    """Returns the paper's arrays, from log alpha_bar in float64. The schedule must not be traced.

    1 - alpha_bar and its root, taken from a float32 alpha_bar, would lose half their digits at the first steps.
    """
    log_alpha_bar = np.asarray(schedule.log_alpha_bar, np.float64)
    from_noise = np.concatenate([[0.0], log_alpha_bar])[::-1]
    chain = steps(Grid(from_noise, from_noise / 2, np.sqrt(-np.expm1(from_noise)), prior_std=1.0))
    between = Steps(*(values[::-1] for values in chain))
    log_beta_tilde, log_betas = chain.posterior_log_variance_clipped[::-1], between.log_variance
    logsnr = _logsnr(log_alpha_bar)
    alpha_bar = 1 / (1 + np.exp(-logsnr))
    return ScheduleArrays(
        betas=between.variance,
        log_betas=log_betas,
        alphas=np.square(between.signal),
        alpha_bar=alpha_bar,
        alpha_bar_prev=np.concatenate([[1.0], alpha_bar[:-1]]),
        sqrt_alpha_bar=np.sqrt(alpha_bar),
        sqrt_one_minus_alpha_bar=1 / np.sqrt(1 + np.exp(logsnr)),
        sqrt_recip_alpha_bar=np.sqrt(1 + np.exp(-logsnr)),
        sqrt_recipm1_alpha_bar=np.exp(-logsnr / 2),
        posterior_mean_coef_x0=between.coef_x0,
        posterior_mean_coef_xt=between.coef_xt,
        posterior_variance=between.posterior_variance,
        posterior_log_variance_clipped=log_beta_tilde,
        fixed_large_log_variance=np.concatenate([log_beta_tilde[:1], log_betas[1:]]),
        logsnr=logsnr,
    )


def make_schedule(
    name: str = "linear",
    num_timesteps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> Schedule:
    """Returns the schedule with this name.

    Args:
      name: A key of `SCHEDULES`.
      num_timesteps: Number T of steps, at least 1.
      beta_start: First beta of linear, quad, warmup10 and warmup50, in (0, 1); may exceed beta_end. Default: 0.1 / T.
      beta_end: Last beta of linear, quad, const, warmup10 and warmup50, in (0, 1). Default: 0.02 *
        1000 / T, capped at 0.999, with a warning if T is so small that the cap applies.

    Raises:
      InputError: Unknown name, T < 1, a beta outside (0, 1), or a beta for a schedule without one.

    Example:
      >>> dj.make_schedule("cosine", 1000)
      Schedule(1000 steps, alpha_bar 0.999959 to 2.42877e-09)
    """
    choose("schedule", name, SCHEDULES)
    if not _is_count(num_timesteps):
        raise InputError(f"num_timesteps is {num_timesteps!r}; it must be an integer of at least 1")
    _check_beta("beta_start", beta_start, name)
    if name == "const" and beta_start is not None:
        raise InputError(
            f"beta_start is {beta_start!r}, but const takes beta_end alone; leave it unset"
        )
    _check_beta("beta_end", beta_end, name)
    if name in _FIXED:
        return _of_betas(_FIXED[name](num_timesteps))
    start = beta_start or _default_beta("beta_start", 1e-4, num_timesteps)
    end = beta_end or _default_beta("beta_end", 0.02, num_timesteps)
    return _of_betas(_RANGED[name](num_timesteps, start, end))


def schedule_from_betas(betas: Sequence[float] | Float[np.ndarray, " T"]) -> Schedule:
    """Returns the schedule with these variances, for one that `SCHEDULES` does not have.

    Args:
      betas: beta_t of each step, the least noisy first; in (0, 1].

    Raises:
      InputError: No steps, not one number per step, or one outside (0, 1].
    """
    try:
        values = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:  # Text, or lists of several lengths.
        raise InputError(f"betas are not numbers: {reason(error)}") from error
    if values.ndim != 1 or len(values) == 0:
        raise InputError(
            f"betas have shape {values.shape}; they must be one number for each of T steps"
        )
    outside = np.flatnonzero(~((values > 0) & (values <= 1)))
    if len(outside):
        k = outside[0]
        raise InputError(f"betas[{k}] is {values[k]:g}; betas must be in the interval (0, 1]")
    lost = np.flatnonzero(np.diff(_log_alpha_bar(values), prepend=0.0) >= 0)
    if len(lost):
        k = lost[0]
        raise InputError(
            f"betas[{k}] is {values[k]:g}, too small beside those before it to count in float64"
        )
    return _of_betas(values)


def _of_betas(betas: Float[np.ndarray, " T"]) -> Schedule:
    return Schedule(_log_alpha_bar(betas), np.arange(len(betas), dtype=np.float32))


def _log_alpha_bar(betas: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    with np.errstate(divide="ignore"):
        log_alphas = np.maximum(np.log1p(-betas), -_MAX_ABS_LOGSNR)  # jsd ends at beta = 1
    return np.cumsum(log_alphas)


def respace(
    schedule: Schedule, num_steps: int, spacing: str | Sequence[float | int] = "uniform"
) -> Schedule:
    """Returns the chain on a subset of the steps (Nichol & Dhariwal, 2021, Section 4).

    Each step keeps its alpha_bar and its entry of `timesteps`; beta is 1 - alpha_bar_t / alpha_bar_s, where s is
    the step kept before t. A sampler needs no such chain: `make_grid` has the same points.

    Args:
      schedule: Schedule of T steps. It must not be traced: the subset is found on the host.
      num_steps: Number of steps to keep, in {1, ..., T}. T gives an equal schedule.
      spacing: A key of `SPACINGS`, or the times themselves.

    Raises:
      InputError: num_steps outside {1, ..., T}, an unknown spacing, or an invalid list.
    """
    log_alpha_bar = np.asarray(schedule.log_alpha_bar, np.float64)
    times = timesteps(num_steps, spacing, _logsnr(log_alpha_bar))
    rows = np.arange(schedule.num_timesteps)
    timesteps_kept = np.interp(times, rows, schedule.timesteps).astype(np.float32)
    return Schedule(np.interp(times, rows, log_alpha_bar), timesteps_kept)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Returns the schedule with sqrt(alpha_bar) shifted and scaled so that the last step erases the image.

    The first step keeps its alpha_bar (Lin et al., 2024, Algorithm 1). The last signal is at most `SMALLEST`.

    Args:
      schedule: Schedule of T steps, at least 2. It must not be traced.

    Raises:
      InputError: There is one step, which would be the first and the last.
    """
    log_signal = np.asarray(schedule.log_alpha_bar, np.float64) / 2
    if len(log_signal) < 2:
        raise InputError("num_timesteps is 1; it must be at least 2 for zero_snr")
    above = np.log(-np.expm1(log_signal[-1] - log_signal[:-1]))  # log(1 - last / signal)
    kept = 2 * (log_signal[:-1] + above - above[0])
    return dataclasses.replace(schedule, log_alpha_bar=np.append(kept, kept[-1] - _MAX_ABS_LOGSNR))


def _logsnr(log_alpha_bar: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    logsnr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    return np.clip(logsnr, -_MAX_ABS_LOGSNR, _MAX_ABS_LOGSNR)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_beta(field: str, beta: object, name: str) -> None:
    if beta is None:
        return
    if name in _FIXED:
        raise InputError(
            f"{field} is {beta!r}, but the schedule {name!r} has none to set; leave it unset (None)"
            f" or choose one of {', '.join(_RANGED)}"
        )
    if not isinstance(beta, Real) or not 0 < float(beta) < 1:
        raise InputError(f"{field} is {beta!r}; it must be a number in the open interval (0, 1)")


def _default_beta(field: str, at_1000_steps: float, num_timesteps: int) -> float:
    """Scales Ho et al.'s value for T = 1000 so that the whole chain adds about as much noise."""
    beta = at_1000_steps * 1000 / num_timesteps
    if beta > 0.999:
        warnings.warn(
            f"{field} for T = {num_timesteps} would be {beta:g} and is capped at 0.999; set it, or"
            " a larger T",
            stacklevel=3,
        )
    return min(beta, 0.999)


def _linear(num_timesteps: int, start: float, end: float) -> Float[np.ndarray, " T"]:
    """Ho et al. (2020), Section 4."""
    return np.linspace(start, end, num_timesteps)


def _quad(num_timesteps: int, start: float, end: float) -> Float[np.ndarray, " T"]:
    """sqrt(beta) is linear."""
    return np.linspace(start**0.5, end**0.5, num_timesteps) ** 2


def _const(num_timesteps: int, start: float, end: float) -> Float[np.ndarray, " T"]:
    del start
    return np.full(num_timesteps, float(end))


def _warmup(fraction: float) -> Callable[[int, float, float], Float[np.ndarray, " T"]]:
    """beta_end throughout, except that the first part of the steps rises linearly to it."""

    def betas(num_timesteps: int, start: float, end: float) -> Float[np.ndarray, " T"]:
        rising = int(fraction * num_timesteps)
        return np.concatenate(
            [np.linspace(start, end, rising), np.full(num_timesteps - rising, end)]
        )

    return betas


def _jsd(num_timesteps: int) -> Float[np.ndarray, " T"]:
    """1/T, 1/(T - 1), ..., 1: alpha_bar falls linearly to 0 (Sohl-Dickstein et al., 2015)."""
    return 1 / np.arange(num_timesteps, 0, -1)


def _cosine(num_timesteps: int) -> Float[np.ndarray, " T"]:
    """alpha_bar = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) * pi / 2), s = 0.008; beta at most 0.999.

    Nichol & Dhariwal (2021), Eq. 17.
    """
    u = np.linspace(0, 1, num_timesteps + 1)
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _sigmoid(num_timesteps: int) -> Float[np.ndarray, " T"]:
    """alpha_bar falls from 1 to 0 as a logistic function of -3 + 6 u; at least 1e-9, as in the paper.

    Jabri et al. (2022), Appendix B: start -3, end 3, tau 1.
    """
    u = np.linspace(0, 1, num_timesteps + 1)
    logistic = 1 / (1 + np.exp(3 - 6 * u))
    alpha_bar = np.maximum((logistic[-1] - logistic) / (logistic[-1] - logistic[0]), 1e-9)
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


_RANGED: dict[str, Callable[[int, float, float], Float[np.ndarray, " T"]]] = {
    "linear": _linear,
    "quad": _quad,
    "const": _const,
    "warmup10": _warmup(0.1),
    "warmup50": _warmup(0.5),
}
_FIXED: dict[str, Callable[[int], Float[np.ndarray, " T"]]] = {
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "jsd": _jsd,
}
# Betas in float64: f(T, beta_start, beta_end), or f(T) if a formula gives alpha_bar.
SCHEDULES: dict[str, Callable[..., Float[np.ndarray, " T"]]] = _RANGED | _FIXED

"""Time grids of samplers, from noise to data (Song et al., 2021, DDIM; Nichol & Dhariwal, 2021).

A spacing rule places N times along T timesteps, 0 the least noisy. For a process in continuous time they may lie
between timesteps and may be more than T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from diffusion_jax.errors import InputError, choose, expect
from diffusion_jax.options import kinds
from diffusion_jax.processes.process import (
    Grid,
    Numbers,
    Points,
    Process,
    are_counted,
    has_arrays,
    levels_of,
    namespace,
)

Times = Float[np.ndarray, " n"]
LARGEST_SIGMA = 80.0  # Largest sigma of the karras spacing.
ROUNDING = 1e-9
SIX_DIGITS = 5e-6  # Relative error of a number that is rounded to six digits.
SAME_POINT = 1e-5  # Relative: a process may hold float32 arrays, and the grid was made of their float64 values.
SAME_SIGNAL = 1e-9  # Difference of log signals that counts as none.
# Smallest u of a grid: without and with noise in the data (Song et al., 2021), and the least level, 0 up to rounding.
CLEAN_U_MIN, NOISY_U_MIN, LEAST_LEVEL = 1e-3, 1e-5, 1e-9
WHOLE_GRID = 1000  # Default number of steps of a process in continuous time.


def make_grid(
    process: Process,
    num_steps: int | None = None,
    spacing: str | Sequence[float | int] = "uniform",
    u_min: float | None = None,
) -> Grid:
    """Returns the points of a sampler with `num_steps` steps, noise first, data last, in float64 on the host.

    Every point has the signal and the std of its time, for every spacing: a respaced chain is another grid.

    Args:
      process: The forward process.
      num_steps: Number N of steps, 1 or more; at most T if the process has T timesteps, counted from 0. None takes the
        process's `num_timesteps`, or the number of times listed.
      spacing: A key of `SPACINGS`, or the times themselves, none twice.
      u_min: Start of the step to the data, as a fraction of the time range, in (0, 1); None: 1e-3, or 1e-5 if images
        have noise at the data's time already, as in VE. Must be None for a discrete process.

    Raises:
      InputError: num_steps out of range, an unknown spacing, an invalid list, or u_min out of range.

    Example:
      >>> dj.make_grid(dj.VP(), 4)
      Grid(5 points, times 999 to 0)
    """
    process = on_host(process)
    levels, (first, final) = levels_of(process), process.ends
    if u_min is not None:
        check_u_min(u_min, levels)
    if levels is not None and are_counted(levels):
        last = process.at(np.array([float(final)]))
        visited = timesteps(num_steps, spacing, process.at(levels.astype(np.float64)).logsnr)
    else:
        u_min = _default_u_min(process) if u_min is None else u_min
        last = process.at(np.asarray(first + (final - first) * np.array([u_min, 1.0])))
        if num_steps is None and isinstance(spacing, str):
            num_steps = getattr(process, "num_timesteps", WHOLE_GRID)
        (start, end), (clean, noisy) = last.time.tolist(), last.logsnr.tolist()
        visited = times_between(num_steps, spacing, (start, end), (clean, noisy), process.times_of)
    points = process.at(visited[::-1])
    return Grid(
        np.append(points.time, first),
        np.append(points.log_signal, 0.0),
        np.append(points.std, 0.0),
        _prior_std_at(process, points, last),
    )


def on_host(process: Process) -> Process:
    """Returns the process with its arrays in float64 on the host, where grids and tables of samplers are made.

    Raises:
      InputError: It is not a process, or it is traced.
    """
    check_process(process)
    if not has_arrays(process):
        return process
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(process)):
        raise InputError(
            "the process is traced, and a grid is made on the host, as are tables of samplers; make it outside of jit "
            "and grad"
        )
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[()], process)


def check_process(process: object) -> None:
    """Raises an InputError for what is not a process: its name, its class, or its schedule."""
    such_as = "a Process, such as VP() or DDPM(make_schedule('cosine', 1000))"
    if isinstance(process, type):  # A class has the attributes of its instances.
        raise InputError(f"process is the class {process.__name__}; it must be {such_as}")
    expect("process", process, Process, such_as)


def process_of(grid: Grid, process: Process) -> Process:
    """Returns the process on the host, for a sampler that asks it for more than the grid has.

    Raises:
      InputError: It is not a process, it is traced, or the grid was made of another process.
    """
    expect("grid", grid, Grid, "a Grid, such as make_grid(process, 50)")
    process, time = on_host(process), grid.time[:-1]
    found = process.at(time)
    same = np.isclose(found.std, grid.std[:-1], rtol=SAME_POINT, atol=SAME_POINT)
    same &= np.isclose(found.log_signal, grid.log_signal[:-1], rtol=SAME_POINT, atol=SAME_POINT)
    if not same.all():
        k = int(np.argmin(same))
        raise InputError(
            f"the grid is not of this process: at time {time[k]:g} the grid's noise has std {grid.std[k]:.4g}, and the "
            f"process's {found.std[k]:.4g}; make it by make_grid(process, num_steps)"
        )
    return process


def check_u_min(u_min: float, levels: object) -> None:
    """Raises if u_min is not in (0, 1), or is set for a discrete process."""
    if levels is not None:
        raise InputError(f"u_min is {u_min!r}, but a discrete process has none; leave it unset")
    if not 0 < u_min < 1:
        raise InputError(f"u_min is {u_min!r}; it must be in the open interval (0, 1)")


def _default_u_min(process: Process) -> float:
    """Returns the default smallest u: larger if the data have no noise, as their score is then barely defined."""
    if levels_of(process) is not None:
        return LEAST_LEVEL
    noisy = process.at(np.array([process.ends[0]])).std[0] > 0
    return NOISY_U_MIN if noisy else CLEAN_U_MIN


def _prior_std_at(process: Process, points: Points, last: Points) -> float:
    """Returns the standard deviation of x at the first of these points.

    If the signal is that of the process's last time, as in VE, only the noise differs, and x is drawn with the point's
    std (Karras et al., 2022). If the signal decays, x_t of data with the prior's std keeps that std.
    """
    if abs(points.log_signal[0] - last.log_signal[-1]) < SAME_SIGNAL:
        return float(process.prior_std) * float(points.std[0] / last.std[-1])
    return float(process.prior_std)


class Timesteps(NamedTuple):
    """The range that a rule places times in: T timesteps, or all times of a process in continuous time.

    Attributes:
      last: The noisiest time, T - 1 or 1; the least noisy is 0.
      ends: log(signal^2 / std^2) at 0 and at `last`.
      times_of: log(signal^2 / std^2) -> times.
      whole: Whether times must be integers, unless a rule says otherwise.
    """

    last: int
    ends: tuple[float, float]
    times_of: Callable[[Times], Times]
    whole: bool

    def rounded(self, times: Times) -> Times:
        """Returns the nearest timesteps, if times must be integers."""
        return np.rint(times) if self.whole else times


def _uniform(num_steps: int, steps: Timesteps) -> Times:
    """Evenly spaced, the first and the last timestep included (Nichol & Dhariwal, 2021); one step: the last."""
    return steps.rounded(np.linspace(steps.last, 0, num_steps))[::-1]


def _leading(num_steps: int, steps: Timesteps) -> Times:
    """Evenly spaced from the first on, without the last: 0, k, 2 k, ... with k = floor(T / N), as in DDIM's code.

    If N does not divide T, that code continues to T; here there are N times in any case.
    """
    k = (steps.last + 1) // num_steps if steps.whole else steps.last / num_steps
    return np.arange(num_steps) * k * 1.0


def _trailing(num_steps: int, steps: Timesteps) -> Times:
    """Evenly spaced back from the last: T, T - T/N, T - 2 T/N, ..., minus 1 (Lin et al., 2024)."""
    if not steps.whole:
        return steps.last * np.arange(1, num_steps + 1) / num_steps
    return np.rint((steps.last + 1) * np.arange(1, num_steps + 1) / num_steps) - 1


def _quadratic(num_steps: int, steps: Timesteps) -> Times:
    """Proportional to i^2 (Song et al., 2021, DDIM, Appendix D.2), the first and the last included.

    The paper's code ends at 0.8 T instead, and may visit the first timestep more than once.
    """
    times = steps.rounded(np.linspace(np.sqrt(steps.last), 0, num_steps)[::-1] ** 2)
    if not steps.whole:
        return times
    # The first squares fall on the same timestep: each takes the next free one.
    for i in range(1, num_steps):
        times[i] = max(times[i], times[i - 1] + 1)
    return np.minimum(times, steps.last + 1 - np.arange(num_steps, 0, -1))


def _logsnr(num_steps: int, steps: Timesteps) -> Times:
    """Evenly spaced in log(signal^2 / std^2), the first and the last included (Lu et al., 2022).

    The times are not integers: between two timesteps of a chain, log alpha_bar is linear.
    """
    clean, noisy = steps.ends
    return steps.times_of(np.linspace(noisy, clean, num_steps))[::-1]


def _karras(num_steps: int, steps: Timesteps) -> Times:
    """Evenly spaced in sigma^(1/7), sigma = std / signal (Karras et al., 2022, Eq. 5 with rho = 7).

    From sigma = 80, as in the paper, or the last timestep's if that is smaller, to the first timestep's. At 80 the
    image is 1/80 of the noise; some schedules go far beyond (cosine: to 20,000), which would take half of the steps.
    The times are not integers, as in `_logsnr`.
    """
    smallest, largest = np.exp(-np.array(steps.ends) / 2)
    first, last = np.array([min(largest, LARGEST_SIGMA), smallest]) ** (1 / 7)
    return steps.times_of(-2 * 7 * np.log(np.linspace(first, last, num_steps)))[::-1]


def times_of(wanted: Numbers, logsnr: Float[np.ndarray | Array, " T"]) -> Numbers:
    """Returns the times where log(signal^2 / std^2) has these values; out of range, the nearest end."""
    xp = namespace(wanted)
    # log alpha_bar = -log(1 + exp(-logsnr)); np.interp wants it ascending, so time runs backward.
    log_alpha_bar = xp.asarray(-namespace(logsnr).logaddexp(0, -logsnr[::-1]))
    times = xp.asarray(np.arange(len(logsnr))[::-1] * 1.0)
    return xp.interp(-xp.logaddexp(xp.zeros_like(wanted), -wanted), log_alpha_bar, times)


# (N, the T timesteps) -> N ascending times
SPACINGS: dict[str, Callable[[int, Timesteps], Times]] = {
    "uniform": _uniform,
    "leading": _leading,
    "trailing": _trailing,
    "quadratic": _quadratic,
    "logsnr": _logsnr,
    "karras": _karras,
}
SPACING = kinds.Either(kinds.Choice(tuple(SPACINGS)), kinds.Tuple(kinds.Float(), empty=False))


def timesteps(
    num_steps: int | None, spacing: str | Sequence[float | int], logsnr: Float[np.ndarray, " T"]
) -> Times:
    """Returns the times that a sampler of a chain of T timesteps visits, ascending.

    Args:
      num_steps: Number N of times, in {1, ..., T}; None: all T, or the number of times listed.
      spacing: A key of `SPACINGS`, or the times themselves, each in [0, T - 1] and none twice.
      logsnr: log(alpha_bar / (1 - alpha_bar)) at each of the T timesteps.

    Raises:
      InputError: num_steps outside {1, ..., T}, an unknown spacing, or an invalid list.
    """
    steps = Timesteps(
        last=len(logsnr) - 1,
        ends=(logsnr[0], logsnr[-1]),
        times_of=lambda wanted: times_of(wanted, logsnr),
        whole=True,
    )
    if not isinstance(spacing, str):
        return _listed(num_steps, spacing, 0, steps.last)
    place = choose("spacing", spacing, SPACINGS)
    if num_steps is None:
        num_steps = steps.last + 1
    if not 1 <= num_steps <= steps.last + 1:
        raise InputError(
            f"num_steps is {num_steps!r}; it must be an integer from 1 to {steps.last + 1} (T)"
        )
    return place(num_steps, steps)


def times_between(
    num_steps: int | None,
    spacing: str | Sequence[float | int],
    ends: tuple[float, float],
    ends_logsnr: tuple[float, float],
    times_of: Callable[[Times], Times],
) -> Times:
    """Returns the times that a sampler of a process in continuous time visits, ascending.

    Args:
      num_steps: Number N of times, 1 or more; None: the number of times listed.
      spacing: A key of `SPACINGS`, or the times themselves, within the process's and none twice.
      ends: The least noisy time of the process, and the noisiest, which is larger.
      ends_logsnr: log(signal^2 / std^2) at both.
      times_of: log(signal^2 / std^2) -> the process's times.

    Raises:
      InputError: num_steps below 1, an unknown spacing, or an invalid list.
    """
    first, last = ends
    if not isinstance(spacing, str):
        return _listed(num_steps, spacing, first, last)
    place = choose("spacing", spacing, SPACINGS)
    if num_steps is None or num_steps < 1:
        raise InputError(f"num_steps is {num_steps!r}; it must be at least 1")

    def parts_of(logsnr: Times) -> Times:
        return np.clip((times_of(logsnr) - first) / (last - first), 0, 1)

    steps = Timesteps(last=1, ends=ends_logsnr, times_of=parts_of, whole=False)
    return first + place(num_steps, steps) * (last - first)


def outermost(first: float | int, last: float | int) -> tuple[float, float]:
    """Returns the tolerance by which a given time may lie beyond the ends of a process's times.

    Messages print six digits of an end, such as 2.30259 for log(10), and callers may round it differently.
    """
    wide = last - first
    low, high = (max(SIX_DIGITS * abs(end), ROUNDING * wide) for end in (first, last))
    return first - low, last + high


def _listed(
    num_steps: int | None, listed: Sequence[float | int], first: float | int, last: float | int
) -> Times:
    times = np.sort(np.asarray(listed, np.float64))
    low, high = outermost(first, last)
    inside = len(times) > 0 and times[0] >= low and times[-1] <= high
    times = np.clip(times, first, last)
    if not (inside and (np.diff(times) > 0).all()):  # NaN is not inside either.
        named = f"{last} (T - 1)" if first == 0 else f"{last:g}"
        raise InputError(
            f"spacing is ({', '.join(f'{t:.12g}' for t in listed)}); a list must hold distinct times from {first:g} to "
            f"{named}"
        )
    if num_steps not in (None, len(times)):
        raise InputError(
            f"num_steps is {num_steps!r}, but spacing lists {len(times)} times; leave one unset"
        )
    return times

"""The discrete chain of Ho et al. (2020), extended to the times between its steps."""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from diffusion_jax.errors import InputError, expect
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.grid import times_of
from diffusion_jax.processes.process import (
    NUM_TIMESTEPS,
    SMALLEST,
    Numbers,
    Point,
    Points,
    Rates,
    floored,
    namespace,
    on_host,
    take,
)
from diffusion_jax.processes.schedules import (
    SCHEDULES,
    Schedule,
    make_schedule,
    zero_terminal_snr,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DDPM:
    """A `Process` of T steps: signal = sqrt(alpha_bar), std = sqrt(1 - alpha_bar).

    Time t is the index of a step, in {0, ..., T - 1}; -1 is the data. Between two steps log alpha_bar is
    linear in t. The network is given t itself.

    Attributes:
      schedule: Variance schedule of T steps, not a result of `respace`: `make_grid` does the respacing.

    Raises:
      InputError: The schedule is respaced: its steps are not their own times.

    Example:
      >>> process = dj.DDPM(dj.processes.schedule_from_betas([0.19, 0.2]))
      >>> process.at(jnp.array([0, 1])).signal.round(3)  # 0.81^(1/2), (0.81 * 0.8)^(1/2)
      Array([0.9  , 0.805], dtype=float32)
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        such_as = "a Schedule, such as make_schedule('cosine', 1000) or schedule_from_betas(betas)"
        expect("schedule", self.schedule, Schedule, such_as)
        times = self.schedule.timesteps
        if isinstance(times, np.ndarray) and not np.array_equal(times, np.arange(len(times))):
            raise InputError(
                "the schedule is respaced; give DDPM the whole schedule, and the sampler make_grid(process,"
                " num_steps, spacing)"
            )

    @property
    def num_timesteps(self) -> int:
        """Number T of steps."""
        return self.schedule.num_timesteps

    @property
    def prior_std(self) -> float:
        """1: std at the last time, up to the square of the last signal."""
        return 1.0

    @property
    def ends(self) -> tuple[float, float]:
        """-1 (the data) and T - 1."""
        return -1.0, self.num_timesteps - 1.0

    @property
    def levels(self) -> Int[np.ndarray, " T"]:
        """0, ..., T - 1."""
        return np.arange(self.num_timesteps)

    @overload
    def at(self, time: Float[np.ndarray, " n"]) -> Points: ...
    @overload
    def at(self, time: Real[Array, " b"]) -> Point: ...
    def at(self, time: Real[Array, " b"] | Float[np.ndarray, " n"]) -> Point | Points:
        """Returns the points at times t in [-1, T - 1], integers or floats; NaN outside.

        With t = s + f, s an integer: alpha_bar_t = alpha_bar_s (alpha_bar_{s+1} / alpha_bar_s)^f, and
        1 - alpha_bar_t = (1 - alpha_bar_s) + alpha_bar_s (1 - (alpha_bar_{s+1} / alpha_bar_s)^f), a sum without
        cancellation. At an integer t both roots are computed in float64 and rounded once.
        """
        if on_host(time):
            return self._on_host(time)
        t = jnp.asarray(time, jnp.float32)
        last = self.num_timesteps - 1
        before = jnp.floor(t)
        row = jnp.where((t >= -1) & (t <= last), before + 1, last + 2).astype(jnp.int32)
        chain, xp = self._chain, namespace(self.schedule.log_alpha_bar)
        signals = xp.exp(xp.maximum(chain.log_signal, np.log(SMALLEST)))
        point = floored(*(take(values, row) for values in (chain.time, signals, chain.std)))
        fraction = t - before
        log_ratio = fraction * take(xp.append(2 * xp.diff(chain.log_signal), 0.0), row)
        added = -jnp.square(point.signal) * jnp.expm1(log_ratio)
        # sqrt(std^2 + added), but std itself where nothing is added, and with the right derivative there. At the
        # data the root has no derivative: it is infinite, and must not reach the gradient of a learned schedule.
        first = jnp.where(t == -1, 1.0, point.std)
        std = first + added / (first + jnp.sqrt(jnp.square(first) + added))
        return floored(
            time=jnp.where(jnp.isnan(point.time), jnp.nan, t),
            signal=point.signal * jnp.exp(log_ratio / 2),
            std=jnp.where(t == -1, 0.0, std),
        )

    def times_of(self, logsnr: Numbers) -> Numbers:
        """Returns the times in [0, T - 1] where 2 log(signal / std) has these values; out of range, the nearest end."""
        return times_of(logsnr, self._logsnr)

    def rates(self, time: Numbers) -> Rates:
        """Returns the SDE whose log alpha_bar is linear between the steps: variance-preserving, drift -diffusion2 / 2.

        At a step, the coefficients are those of the interval toward the data, which a reverse step crosses.
        """
        xp = namespace(time)
        log_signal = self._chain.log_signal
        slope = xp.asarray(namespace(log_signal).diff(log_signal))
        interval = xp.clip(xp.ceil(time), 0, self.num_timesteps - 1).astype(int)
        drift = slope[interval] * xp.ones_like(time)
        return Rates(drift, -2 * drift)

    def _on_host(self, time: Float[np.ndarray, " n"]) -> Points:
        chain = self._chain
        log_signal = np.interp(time, chain.time, chain.log_signal, left=np.nan, right=np.nan)
        return Points(time, log_signal, np.sqrt(-np.expm1(2 * log_signal)))

    @property
    def _logsnr(self) -> Float[np.ndarray | Array, " T"]:
        """2 log(signal / std) at each timestep."""
        chain = self._chain
        return 2 * (chain.log_signal[1:] - namespace(chain.std).log(chain.std[1:]))

    @property
    def _chain(self) -> _Chain:
        xp = namespace(self.schedule.log_alpha_bar)
        log_signal = xp.append(0.0, self.schedule.log_alpha_bar / 2)
        times = np.arange(-1.0, self.num_timesteps)
        return _Chain(times, log_signal, xp.sqrt(-xp.expm1(2 * log_signal)))


class _Chain(NamedTuple):
    """The data and all T steps, noise last: row t + 1 is time t. Float64 on the host, or JAX arrays."""

    time: Float[np.ndarray, " n"]
    log_signal: Float[np.ndarray | Array, " n"]
    std: Float[np.ndarray | Array, " n"]


def discrete_chain(
    *,
    schedule: Annotated[
        str, Option(kinds.Choice(tuple(SCHEDULES)), "variance schedule beta_t")
    ] = "linear",
    num_timesteps: Annotated[int, NUM_TIMESTEPS] = 1000,
    beta_start: Annotated[
        float | None,
        Option(kinds.Float(0, 1, open=True), "first beta, if the schedule has one; unset: 0.1 / T"),
    ] = None,
    beta_end: Annotated[
        float | None,
        Option(kinds.Float(0, 1, open=True), "last beta, if the schedule has one; unset: 20 / T"),
    ] = None,
    zero_snr: Annotated[
        bool,
        Option(
            kinds.Bool(),
            "rescale the schedule so that the last step erases the image; not with predictions of the noise alone",
        ),
    ] = False,
) -> DDPM:
    """Returns the chain with a schedule from `make_schedule`; see there for the options and errors.

    Args:
      schedule: A key of `SCHEDULES`.
      num_timesteps: Number T of steps.
      beta_start: First beta, if the schedule has one; None: 0.1 / T.
      beta_end: Last beta, if the schedule has one; None: 20 / T.
      zero_snr: Whether to rescale it by `zero_terminal_snr`.
    """
    made = make_schedule(schedule, num_timesteps, beta_start, beta_end)
    return DDPM(zero_terminal_snr(made) if zero_snr else made)

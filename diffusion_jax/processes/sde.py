"""The score SDEs of Song et al. (2021), Section 3.4: variance-exploding, variance-preserving and sub-VP.

Each is an affine SDE on u in [0, 1], from the data to noise,

    dx = f(u) x du + g(u) dw,      so x_u = signal x_0 + std eps,

and a `Process` like the discrete chain: every loss, sampler and likelihood works on the pair (signal, std). At u = 0
the score of the data is undefined or not learned, so grids and training each have a smallest u (`make_grid`,
`losses.time_samplers`).
"""

from __future__ import annotations

import abc
import dataclasses
from numbers import Real as RealNumber
from typing import Annotated, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from diffusion_jax.errors import InputError
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.process import (
    NUM_TIMESTEPS,
    Numbers,
    Point,
    Points,
    Rates,
    Scalar,
    floored,
    has_arrays,
    namespace,
    on_host,
)

LAST_TIME = 999.0  # Last time of VP and sub-VP, as for DDPM with 1,000 steps.
LARGEST_LOGSNR = (
    1000.0  # Stands for the data's, which is infinite; no process reaches it elsewhere in float64.
)
STATIC = {"static": True}  # Metadata of a field that is not a pytree leaf.
ROUNDING = 1e-6  # Rounding error of u in float32: a u beyond an end by no more counts as the end.


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ContinuousProcess(abc.ABC):
    """A `Process` whose signal and std are functions of u in [0, 1], and whose time is linear in u.

    A subclass defines the abstract methods; those of u get float64 NumPy or float32 JAX arrays.

    Attributes:
      num_timesteps: Number of steps of the whole grid.

    Raises:
      InputError: A number is out of range.
    """

    num_timesteps: Annotated[int, NUM_TIMESTEPS] = dataclasses.field(default=1000, metadata=STATIC)

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise InputError(f"num_timesteps is {self.num_timesteps!r}; it must be at least 1")

    @property
    @abc.abstractmethod
    def prior_std(self) -> Scalar:
        """Standard deviation of the normal distribution that sampling starts from."""

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[Scalar, Scalar]:
        """The times of u = 0 and of u = 1."""

    @abc.abstractmethod
    def log_signal(self, u: Numbers) -> Numbers:
        """Returns the log of the signal."""

    @abc.abstractmethod
    def std(self, u: Numbers) -> Numbers:
        """Returns the standard deviation of the noise."""

    @abc.abstractmethod
    def rates_in_u(self, u: Numbers) -> Rates:
        """Returns f and g^2, by u."""

    @abc.abstractmethod
    def u_of(self, logsnr: Numbers) -> Numbers:
        """Returns u where 2 log(signal / std) takes these values; it may lie outside [0, 1]."""

    @overload
    def at(self, time: Float[np.ndarray, " n"]) -> Points: ...
    @overload
    def at(self, time: Real[Array, " b"]) -> Point: ...
    def at(self, time: Real[Array, " b"] | Float[np.ndarray, " n"]) -> Point | Points:
        """Returns the points at these times, with u in [0, 1]; NaN outside."""
        if on_host(time):
            u = self._u(time)
            u = np.where((u >= -ROUNDING) & (u <= 1 + ROUNDING), u, np.nan)
            return Points(time, self.log_signal(u), self.std(u))
        time = jnp.asarray(time, jnp.float32)
        u = self._u(time)
        inside = (u >= -ROUNDING) & (u <= 1 + ROUNDING)
        u = jnp.clip(u, 0, 1)
        values = floored(time, jnp.exp(self.log_signal(u)), self.std(u))
        return Point(*(jnp.where(inside, value, jnp.nan) for value in values))

    def times_of(self, logsnr: Numbers) -> Numbers:
        """Returns the times where 2 log(signal / std) has these values; beyond u in [0, 1], the nearest end."""
        xp = namespace(logsnr)
        noisiest = self._noisiest()
        return self._time(xp.clip(self.u_of(xp.clip(logsnr, noisiest, LARGEST_LOGSNR)), 0, 1))

    def _noisiest(self) -> Scalar:
        """2 log(signal / std) at u = 1."""
        if not has_arrays(self):
            return float(self.at(np.array([self.ends[1]])).logsnr[0])
        u = jnp.ones(1)
        return 2 * (self.log_signal(u) - jnp.log(self.std(u)))[0]

    def rates(self, time: Numbers) -> Rates:
        """Returns the coefficients of the SDE in the process's own time."""
        first, last = self.ends
        in_u = self.rates_in_u(self._u(time))
        return Rates(in_u.drift / (last - first), in_u.diffusion2 / (last - first))

    def _time(self, u: Numbers) -> Numbers:
        first, last = self.ends
        return first + (last - first) * u  # pyright: ignore[reportReturnType]

    def _u(self, time: Numbers) -> Numbers:
        first, last = self.ends
        return (time - first) / (last - first)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _OfBeta(ContinuousProcess):
    """Signal exp(-B / 2), where B is the integral of beta(u) = beta_min + u (beta_max - beta_min); time is 999 u.

    Attributes:
      beta_min: beta(0), positive.
      beta_max: beta(1), larger.
    """

    beta_min: Annotated[
        Scalar, Option(kinds.Float(1e-6, 1e6), "beta at u = 0, the data; unset: 0.1", default=None)
    ] = 0.1
    beta_max: Annotated[
        Scalar, Option(kinds.Float(1e-6, 1e6), "beta at u = 1; unset: 20", default=None)
    ] = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("beta", self.beta_min, self.beta_max)

    @property
    def prior_std(self) -> Scalar:
        """1: std at the last time, up to the square of the last signal."""
        return 1.0

    @property
    def ends(self) -> tuple[Scalar, Scalar]:
        """0 and 999."""
        return 0.0, LAST_TIME

    def log_signal(self, u: Numbers) -> Numbers:
        """Returns -B / 2."""
        return -(self.beta_min * u + (self.beta_max - self.beta_min) * u * u / 2) / 2  # pyright: ignore[reportReturnType]

    def _beta(self, u: Numbers) -> Numbers:
        return self.beta_min + (self.beta_max - self.beta_min) * u  # pyright: ignore[reportReturnType]

    def _u_of_integral(self, integral: Numbers) -> Numbers:
        """Returns u for a given B: the root of a quadratic equation, in the form without cancellation."""
        slope = self.beta_max - self.beta_min
        root = namespace(integral).sqrt(self.beta_min**2 + 2 * slope * integral)
        return 2 * integral / (self.beta_min + root)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VP(_OfBeta):
    """The variance-preserving SDE, dx = -beta x / 2 du + beta^(1/2) dw (Eq. 11): DDPM's chain for many steps.

    beta_min and beta_max are N times the first and the last beta of a chain of N steps.

    Example:
      >>> point = dj.VP().at(jnp.array([0.0, 999.0]))  # The data, and the noise.
      >>> point.signal.round(3), point.std.round(3)
      (Array([1.   , 0.007], dtype=float32), Array([0., 1.], dtype=float32))
    """

    def std(self, u: Numbers) -> Numbers:
        """Returns (1 - exp(-B))^(1/2) (Eq. 29)."""
        xp = namespace(u)
        return xp.sqrt(-xp.expm1(2 * self.log_signal(u)))

    def rates_in_u(self, u: Numbers) -> Rates:
        """Returns -beta / 2 and beta."""
        beta = self._beta(u)
        return Rates(-beta / 2, beta)

    def u_of(self, logsnr: Numbers) -> Numbers:
        """Returns the u where B = log(1 + exp(-logsnr))."""
        return self._u_of_integral(namespace(logsnr).logaddexp(0 * logsnr, -logsnr))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SubVP(_OfBeta):
    """The sub-VP SDE, dx = -beta x / 2 du + (beta (1 - exp(-2 B)))^(1/2) dw (Eq. 12): VP's signal, less noise."""

    def std(self, u: Numbers) -> Numbers:
        """Returns 1 - exp(-B) (Eq. 29)."""
        return -namespace(u).expm1(2 * self.log_signal(u))

    def rates_in_u(self, u: Numbers) -> Rates:
        """Returns -beta / 2 and beta (1 - exp(-2 B))."""
        beta = self._beta(u)
        return Rates(-beta / 2, -beta * namespace(u).expm1(4 * self.log_signal(u)))

    def u_of(self, logsnr: Numbers) -> Numbers:
        """Returns the u where 2 sinh(B / 2) = std / signal."""
        xp = namespace(logsnr)
        return self._u_of_integral(2 * xp.arcsinh(xp.exp(-logsnr / 2) / 2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VE(ContinuousProcess):
    """The variance-exploding SDE, dx = (d sigma^2 / du)^(1/2) dw (Eq. 9), sigma = sigma_min (sigma_max / sigma_min)^u.

    As in the paper, x_u has noise sigma, even at u = 0. Time is log sigma. Pixels are in [-1, 1]; the paper's
    sigmas, for [0, 1], are half as large.

    Attributes:
      sigma_min: sigma at u = 0, positive.
      sigma_max: sigma at u = 1, larger; about the largest distance between two images.

    Example:
      >>> process = dj.VE(sigma_min=0.01, sigma_max=100.0)
      >>> process.at(jnp.log(jnp.array([0.01, 1.0, 100.0]))).std.round(2)  # Time is log sigma.
      Array([1.e-02, 1.e+00, 1.e+02], dtype=float32)
    """

    sigma_min: Annotated[
        Scalar,
        Option(
            kinds.Float(1e-6, 1e6),
            "noise at u = 0, of pixels in [-1, 1]; unset: 0.02",
            default=None,
        ),
    ] = 0.02
    sigma_max: Annotated[
        Scalar,
        Option(
            kinds.Float(1e-6, 1e6),
            "noise at u = 1, about the largest distance between two images; unset: 100",
            default=None,
        ),
    ] = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("sigma", self.sigma_min, self.sigma_max)

    @property
    def prior_std(self) -> Scalar:
        """sigma_max."""
        return self.sigma_max

    @property
    def ends(self) -> tuple[Scalar, Scalar]:
        """log sigma_min and log sigma_max."""
        return _log(self.sigma_min), _log(self.sigma_max)

    def log_signal(self, u: Numbers) -> Numbers:
        """Returns 0."""
        return 0 * u

    def std(self, u: Numbers) -> Numbers:
        """Returns sigma."""
        return namespace(u).exp(self._time(u))

    def rates_in_u(self, u: Numbers) -> Rates:
        """Returns 0 and 2 sigma^2 log(sigma_max / sigma_min)."""
        first, last = self.ends
        return Rates(0 * u, 2 * (last - first) * self.std(u) ** 2)

    def u_of(self, logsnr: Numbers) -> Numbers:
        """Returns the u where log sigma = -logsnr / 2."""
        return self._u(-logsnr / 2)


def _log(value: Scalar) -> Scalar:
    return jnp.log(value) if isinstance(value, jax.Array) else float(np.log(value))


def check_ascending(name: str, smallest: Scalar, largest: Scalar) -> None:
    """Raises an InputError unless NAME_min and NAME_max are positive, finite and increasing.

    JAX arrays, which may be traced, pass unchecked: training must keep them in order.
    """
    both = isinstance(smallest, RealNumber) and isinstance(largest, RealNumber)
    if both and not 0 < smallest < largest < np.inf:
        raise InputError(
            f"{name}_min is {smallest!r} and {name}_max is {largest!r}; they must be positive and increasing"
        )

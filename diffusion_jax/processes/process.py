"""The interface of all processes: x_t = signal x_0 + std eps, at a point in time and on a grid of points.

DDPM, NCSN and the score SDEs differ only in how signal and std depend on time (Kingma et al., 2021; Karras et
al., 2022), so everything else in the package is written on this pair.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import NamedTuple, Protocol, TypeGuard, TypeVar, overload, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from diffusion_jax.options import Option, kinds

# Lower bound of nonzero signal and std in float32: keeps all conversions finite, even where a schedule
# erases the image (the end of jsd) or barely changes it.
SMALLEST = float(np.exp(-20.0))


# One number per image in a compiled program (float32), or one per point on the host (float64).
Numbers = TypeVar("Numbers", Float[Array, " b"], Float[np.ndarray, " b"])


# A number of a process; a JAX array if it is learned or traced.
Scalar = float | Float[Array, ""]


def namespace(values: object) -> ModuleType:
    """Returns jax.numpy for JAX arrays, traced or not, and NumPy for all others."""
    return jnp if isinstance(values, jax.Array) else np


def on_host(time: object) -> TypeGuard[np.ndarray]:
    """Returns whether these times ask for float64 on the host, as only float64 NumPy arrays do."""
    return isinstance(time, np.ndarray) and time.dtype == np.float64


class Rates(NamedTuple):
    """The SDE dx = drift x dt + diffusion dw whose solution is x_t, in a process's own time.

    Attributes:
      drift: d log signal / dt.
      diffusion2: Square of the diffusion, d std^2 / dt - 2 drift std^2: std^2 times -d logsnr / dt.
    """

    drift: Float[Array, " b"] | Float[np.ndarray, " b"]
    diffusion2: Float[Array, " b"] | Float[np.ndarray, " b"]


class Point(NamedTuple):
    """Noise level of each image: x_t = signal x_0 + std eps, eps ~ N(0, I).

    In a sampler's step all images share one point, whose fields have shape ().

    Attributes:
      time: Time that the network is given.
      signal: Scale of x_0, positive.
      std: Standard deviation of the noise; 0 at the data.
    """

    time: Float[Array, " b"]
    signal: Float[Array, " b"]
    std: Float[Array, " b"]

    @property
    def sigma(self) -> Array:
        """std / signal, the noise of x_t / signal (Karras et al., 2022)."""
        return self.std / self.signal

    @property
    def logsnr(self) -> Array:
        """2 log(signal / std); infinite at the data."""
        return 2 * (jnp.log(self.signal) - jnp.log(self.std))

    @property
    def scale(self) -> Array:
        """sqrt(signal^2 + std^2), the standard deviation of x_t for data of unit variance."""
        return jnp.hypot(self.signal, self.std)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Points:
    """Several points, in float64 on the host.

    Attributes:
      time: Times as the network is given them.
      log_signal: Log of the scale of x_0 at each point; the scale itself may be too small for float64.
      std: Standard deviation of the noise at each point.
    """

    time: Float[np.ndarray, " n"]
    log_signal: Float[np.ndarray, " n"]
    std: Float[np.ndarray, " n"]

    @property
    def signal(self) -> Float[np.ndarray, " n"]:
        """Scale of x_0 at each point, at least `SMALLEST`."""
        return np.exp(np.maximum(self.log_signal, np.log(SMALLEST)))

    @property
    def logsnr(self) -> Float[np.ndarray, " n"]:
        """2 log(signal / std) at each point; infinite at the data."""
        with np.errstate(divide="ignore"):
            return 2 * (self.log_signal - np.log(self.std))

    def __repr__(self) -> str:
        """Returns the number of points, and the first and the last time."""
        ends = f", times {self.time[0]:g} to {self.time[-1]:g}" if len(self.time) else ""
        return f"{type(self).__name__}({len(self.time)} points{ends})"

    def at(self, i: Int[Array, "*b"]) -> Point:
        """Returns the points with these indices, in float32; NaN for an i below 0 or beyond the end."""
        return floored(*(take(values, i) for values in (self.time, self.signal, self.std)))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Grid(Points):
    """N + 1 points from noise to data; step i goes from point i to point i + 1.

    std is strictly decreasing relative to the signal.

    Attributes:
      prior_std: Standard deviation of the normal distribution that sampling starts from at point 0, which need not be
        the process's last time.
    """

    prior_std: float

    @property
    def num_steps(self) -> int:
        """Number N of steps."""
        return len(self.time) - 1


def floored(time: Float[Array, "*b"], signal: Float[Array, "*b"], std: Float[Array, "*b"]) -> Point:
    """Returns the point with signal, and std where nonzero, of at least `SMALLEST`."""
    return Point(
        time, jnp.maximum(signal, SMALLEST), jnp.where(std > 0, jnp.maximum(std, SMALLEST), std)
    )


def take(values: Float[np.ndarray | Array, " n"], i: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns values[i], rounded to float32; NaN for an i below 0 or beyond the end."""
    outside = len(values)  # A negative index would count from the end.
    return jnp.take(jnp.asarray(values, jnp.float32), jnp.where(i < 0, outside, i), mode="fill")


NUM_TIMESTEPS = Option(
    kinds.Int(1, 1_000_000),
    "number of steps T; SDEs: default number of sampler steps; ncsn: number of levels L",
    default=1000,
)


@runtime_checkable
class Process(Protocol):
    """How signal and std depend on time.

    A process has one time variable, the one that its network is given; its unit is the process's choice.
    Its functions compute in float64 on the host for float64 NumPy arrays, and in float32 for JAX arrays,
    traced or not. A process that is a pytree (`jax.tree_util.register_dataclass`) may hold JAX arrays: it can be an
    argument of a compiled function, and be differentiated with respect to them.

    Attributes:
      prior_std: Standard deviation of the normal distribution of x at the last time.
      ends: Time of the data, and the last time.

      levels: Optional, None by default. Times of a discrete process, the only ones that it is trained at: either the
        integers from 0 to the last time, which are also the only times of a grid; or numbers evenly spaced between
        both ends, which grids ignore.
      num_timesteps: Optional, 1000 by default. Number of steps of the whole grid.
    """

    @property
    def prior_std(self) -> Scalar: ...

    @property
    def ends(self) -> tuple[Scalar, Scalar]: ...

    @overload
    def at(self, time: Float[np.ndarray, " n"]) -> Points: ...
    @overload
    def at(self, time: Real[Array, " b"]) -> Point: ...
    def at(self, time: Real[Array, " b"] | Float[np.ndarray, " n"]) -> Point | Points:
        """Returns the points at these times; NaN outside the process's range."""
        ...

    def times_of(self, logsnr: Numbers) -> Numbers:
        """Returns the times with this 2 log(signal / std), or the nearest that a network is trained at."""
        ...

    def rates(self, time: Numbers) -> Rates:
        """Returns the coefficients of the process's SDE at these times."""
        ...


def has_arrays(process: Process) -> bool:
    """Returns whether a process holds arrays of JAX, traced or not, such as the parameters of a learned schedule."""
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(process))


def levels_of(process: Process) -> Real[np.ndarray, " T"] | None:
    """Returns the only times that a discrete process is trained at; None for a process in continuous time."""
    return getattr(process, "levels", None)


def are_counted(levels: Real[np.ndarray, " T"]) -> bool:
    """Returns whether these levels are timesteps, 0 to T - 1."""
    return np.issubdtype(levels.dtype, np.integer)

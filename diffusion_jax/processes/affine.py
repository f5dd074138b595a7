"""A `Process` from the coefficients of its SDE alone: signal and std by numerical integration.

The moments of dx = f(u) x du + g(u) dw obey (Särkkä & Solin, 2019, Section 5.5)

    d log signal / du = f           d std^2 / du = 2 f std^2 + g^2.

Both are integrated once on the host, over knots that are dense near the data, and interpolated cubically between knots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from diffusion_jax.errors import InputError
from diffusion_jax.processes.process import Numbers, Rates, namespace
from diffusion_jax.processes.sde import LAST_TIME, STATIC, ContinuousProcess

NUM_CELLS = 4096
KNOTS = np.square(np.linspace(0, 1, NUM_CELLS + 1))
# For u >= 1e-6 the first guess has two correct digits or more, and each step doubles their number.
NEWTON_STEPS = 2

Knots = Float[np.ndarray, " k"]


class _Table(NamedTuple):
    """Values at the knots: both coefficients, and the moments that follow from them."""

    drift: Knots
    diffusion2: Knots
    log_signal: Knots
    variance: Knots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Affine(ContinuousProcess):
    """The process of dx = drift(u) x du + diffusion(u) dw on u in [0, 1]; time is 999 u.

    Attributes:
      drift: f, a function of a float64 NumPy array of u; returns one number per u, finite on [0, 1].
      diffusion: g, likewise; nonzero on (0, 1).
      first_std: std at u = 0, noise that an image has from the start, as in VE.

    Raises:
      InputError: A coefficient is not one finite number per u, diffusion is 0, first_std is negative, or
        signal / std is not strictly decreasing.
    """

    drift: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]] = dataclasses.field(
        metadata=STATIC
    )
    diffusion: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]] = dataclasses.field(
        metadata=STATIC
    )
    first_std: float = dataclasses.field(default=0.0, metadata=STATIC)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first_std < np.inf:
            raise InputError(f"first_std is {self.first_std!r}; it must be finite and not negative")
        if not (self._table.diffusion2[1:] > 0).all():
            raise InputError("diffusion(u) is 0 for some u in (0, 1]; it must be nonzero there")
        if not (np.diff(self._log_ratio) > 0).all():
            raise InputError(
                "signal / std is not strictly decreasing from u = 0 to u = 1 in float64; give drift(u) and diffusion(u)"
                " that move both more evenly"
            )

    @property
    def prior_std(self) -> float:
        """std at u = 1."""
        return float(np.sqrt(self._table.variance[-1]))

    @property
    def ends(self) -> tuple[float, float]:
        """0 and 999."""
        return 0.0, LAST_TIME

    def log_signal(self, u: Numbers) -> Numbers:
        """Returns the integral of f from 0 to u."""
        return _cubic(u, self._table.log_signal, self._table.drift)

    def std(self, u: Numbers) -> Numbers:
        """Returns the root of the solution of d std^2 / du = 2 f std^2 + g^2."""
        return namespace(u).sqrt(self._variance(u))

    def rates_in_u(self, u: Numbers) -> Rates:
        """Returns f and g^2; in a compiled program they are linear between two knots."""
        table, xp = self._table, namespace(u)
        if isinstance(u, np.ndarray):
            return Rates(
                _values(self.drift, "drift", u), _values(self.diffusion, "diffusion", u) ** 2
            )
        return Rates(xp.interp(u, KNOTS, table.drift), xp.interp(u, KNOTS, table.diffusion2))

    def u_of(self, logsnr: Numbers) -> Numbers:
        """Returns the u in [0, 1] where 2 log(signal / std) takes these values, by Newton's method."""
        xp = namespace(logsnr)
        ratio, knots = self._log_ratio, KNOTS[1:]
        u = xp.square(xp.interp(-logsnr, xp.asarray(ratio), xp.asarray(np.sqrt(knots))))
        for _ in range(NEWTON_STEPS):
            # d(-logsnr) / du = g^2 / std^2.
            variance, rates = self._variance(u), self.rates_in_u(u)
            excess = xp.log(variance) - 2 * self.log_signal(u) + logsnr
            u = xp.clip(u - excess * variance / rates.diffusion2, knots[0], 1)
        return xp.where(-logsnr < ratio[0], 0, u)

    def _variance(self, u: Numbers) -> Numbers:
        table = self._table
        return _cubic(u, table.variance, 2 * table.drift * table.variance + table.diffusion2)

    @property
    def _log_ratio(self) -> Knots:
        """2 log(std / signal) at all knots but the first, where std may be 0."""
        table = self._table
        return np.log(table.variance[1:]) - 2 * table.log_signal[1:]

    @cached_property
    def _table(self) -> _Table:
        """Integrates over each cell by four-point Gauss quadrature, and sums cumulatively."""
        f, g2 = (
            _values(self.drift, "drift", KNOTS),
            _values(self.diffusion, "diffusion", KNOTS) ** 2,
        )
        nodes, weights = np.polynomial.legendre.leggauss(4)
        size = np.diff(KNOTS)[:, None]
        u = KNOTS[:-1, None] + size * (nodes + 1) / 2
        of_cell = size * weights / 2  # Rows: cells.
        rise = (of_cell * _values(self.drift, "drift", u.ravel()).reshape(u.shape)).sum(1)
        log_signal = np.append(0.0, np.cumsum(rise))
        # Noise added at u reaches the cell's end scaled by signal(end) / signal(u).
        scale2 = np.exp(
            2 * (log_signal[1:, None] - _cubic(u.ravel(), log_signal, f).reshape(u.shape))
        )
        inside = _values(self.diffusion, "diffusion", u.ravel()).reshape(u.shape) ** 2
        added = (of_cell * scale2 * inside).sum(1)
        variance = [self.first_std**2]
        for kept, new in zip(np.exp(2 * rise), added, strict=True):
            variance.append(variance[-1] * kept + new)
        return _Table(f, g2, log_signal, np.array(variance))


def _values(
    coefficient: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    name: str,
    u: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Returns the coefficient at these u."""
    values = np.asarray(coefficient(u), np.float64)
    if values.shape != u.shape or not np.isfinite(values).all():
        raise InputError(
            f"{name} returns an array of shape {values.shape} for {len(u)} values of u; it must return one finite"
            " number for each"
        )
    return values


def _cubic(u: Numbers, values: Knots, slopes: Knots) -> Numbers:
    """Returns the cubic Hermite interpolant with these values and slopes at two knots."""
    xp = namespace(u)
    cell = xp.clip(xp.floor(xp.sqrt(xp.clip(u, 0, 1)) * NUM_CELLS), 0, NUM_CELLS - 1).astype(int)
    first, last, value, next_value, slope, next_slope = (
        xp.asarray(table, u.dtype)[index]
        for table in (KNOTS, values, slopes)
        for index in (cell, cell + 1)
    )
    size = last - first
    w = (u - first) / size
    rise = next_value - value
    bend = (slope * size - rise) * (1 - w) - (next_slope * size - rise) * w
    return value + w * (rise + (1 - w) * bend)

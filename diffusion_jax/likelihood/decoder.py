"""The decoder p(x_0 | x_1) for images of 256 levels: a discretized Gaussian (Ho et al., 2020, Eq. 13).

The probability of a level is that of its bin under N(mean, std^2), the first and the last bin being open. With
z = |x - mean| / std and h half the width of a bin in units of std, a bin has

    P(z, h) = integral of phi from z - h to z + h = phi(z) I(z, h),
    I(z, h) = 2 integral of cosh(z s) exp(-s^2 / 2) ds from 0 to h.

A difference of two values of Phi would lose all digits in the tails. So there are three forms, none with a difference
of nearly equal numbers, where M(a) = (1 - Phi(a)) / phi(a) is Mills' ratio:

    narrow  h <= 1 and z h <= 1   I by Gauss-Legendre quadrature
    tail    z >= h                phi(z - h) (M(z - h) - M(z + h) exp(-2 z h))
    wide    z < h                 1 - (1 - Phi(h + z)) - (1 - Phi(h - z))

The derivatives are taken from the same forms: d log P/dz = (phi(z + h) - phi(z - h)) / P and, by log 1 / std,
((z + h) phi(z + h) - (z - h) phi(z - h)) / P. The near edge of a bin, z - h, is subtracted before it is divided by the
standard deviation: there no digits are lost, though z and h may be far larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import InputError

HALF_BIN = 1 / 255
ROUNDED = float(np.float32(HALF_BIN))  # Half a bin is this and
REMAINDER = HALF_BIN - ROUNDED  # this, which float32 cannot hold in one number.
LOG_SQRT_2PI = math.log(2 * math.pi) / 2
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)
FARTHEST = 1e-12  # Lower bound of probabilities in codes with the tanh approximation.
SMALL_Z = 4.0  # Mills' ratio: by erfc below, by its continued fraction above.
FRACTIONS = 14  # Enough for 1e-8 at SMALL_Z.


def mills(a: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Returns (1 - Phi(a)) / phi(a) for a >= 0."""
    small, large = jnp.minimum(a, SMALL_Z), jnp.maximum(a, SMALL_Z)
    near = jax.lax.erfc(small / math.sqrt(2)) * jnp.exp(jnp.square(small) / 2)
    tail = large
    for k in range(FRACTIONS, 0, -1):  # 1 / (a + 1 / (a + 2 / (a + 3 / ...)))
        tail = large + k / tail
    return jnp.where(a < SMALL_Z, math.sqrt(math.pi / 2) * near, 1 / tail)


def _log_phi(z: Array) -> Array:
    return -jnp.square(z) / 2 - LOG_SQRT_2PI


def _narrow(z: Array, h: Array) -> tuple[Array, Array, Array]:
    """Returns log P and its derivatives by z and by log 1 / std, for h <= 1 and z h <= 1."""
    h, z_in = jnp.minimum(h, 1.0), z
    z = jnp.minimum(z, 1 / h)
    total = slope = jnp.zeros_like(z)
    for node, weight in zip((NODES + 1) / 2, WEIGHTS / 2, strict=True):  # On [0, 1].
        s = node * h
        density = weight * jnp.exp(-jnp.square(s) / 2)
        total = total + density * jnp.cosh(z * s)
        slope = slope + density * s * jnp.sinh(z * s)
    by_z = slope / total - z_in
    ends = jnp.cosh(z * h) * jnp.exp(-jnp.square(h) / 2) / total
    return _log_phi(z_in) + jnp.log(2 * h * total), by_z, z_in * by_z + ends


def _tail(z: Array, h: Array, edge: Array) -> tuple[Array, Array, Array]:
    """Returns the same for z >= h, where edge is z - h."""
    a = jnp.maximum(edge, 0.0)
    b = jnp.maximum(z + h, a)
    decay = jnp.exp(-2 * z * h)
    # Where the bin is narrow, this is not used; there it may be 0.
    mass = jnp.maximum(mills(a) - mills(b) * decay, 1e-30)
    return _log_phi(a) + jnp.log(mass), jnp.expm1(-2 * z * h) / mass, (b * decay - a) / mass


def _wide(z: Array, h: Array, edge: Array) -> tuple[Array, Array, Array]:
    """Returns the same for z < h."""
    near, far = jnp.maximum(-edge, 0.0), h + z
    outside = jnp.exp(_log_phi(near)) * mills(near) + jnp.exp(_log_phi(far)) * mills(far)
    density = jnp.exp(_log_phi(near)) / jnp.maximum(1 - outside, 1e-30)
    return (
        jnp.log1p(-jnp.minimum(outside, 1.0)),
        density * jnp.expm1(-2 * z * h),
        density * (far * jnp.exp(-2 * z * h) + near),
    )


def _beyond_bin(off: Array, inverse_std: Array) -> Array:
    """Returns how far an offset is beyond half a bin, in units of std."""
    # The remainder is scaled by itself, or XLA would add up the two constants.
    return inverse_std * (off - ROUNDED) - inverse_std * REMAINDER


def _bin(off: Array, log_variance: Array) -> tuple[Array, Array, Array]:
    """Returns log P and its derivatives by the offset and by the log variance."""
    inverse_std, distance = jnp.exp(-log_variance / 2), jnp.abs(off)
    z, h = inverse_std * distance, inverse_std * HALF_BIN
    edge = _beyond_bin(distance, inverse_std)
    forms = zip(_narrow(z, h), _tail(z, h, edge), _wide(z, h, edge), strict=True)
    narrow = (h <= 1) & (z * h <= 1)
    log_p, by_z, by_scale = (jnp.where(narrow, n, jnp.where(edge >= 0, t, w)) for n, t, w in forms)
    return log_p, jnp.sign(off) * inverse_std * by_z, -by_scale / 2


@jax.custom_jvp
def log_bin(
    off: Float[Array, "*dims"], log_variance: Float[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """Returns the log probability of a bin about `off` under a Gaussian of mean 0."""
    return _bin(off, log_variance)[0]


@log_bin.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    log_p, by_off, by_log_variance = _bin(*primals)
    return log_p, by_off * tangents[0] + by_log_variance * tangents[1]


def _log_above(a: Array) -> tuple[Array, Array]:
    """Returns log(1 - Phi(a)) and its derivative, -phi(a) / (1 - Phi(a))."""
    far, near = jnp.maximum(a, 0.0), jnp.minimum(a, 0.0)
    below = jnp.exp(_log_phi(near)) * mills(-near)  # Phi(a), for a < 0.
    log_p = jnp.where(a > 0, _log_phi(far) + jnp.log(mills(far)), jnp.log1p(-below))
    return log_p, -jnp.where(a > 0, 1 / mills(far), jnp.exp(_log_phi(near)) / (1 - below))


@jax.custom_jvp
def log_above(a: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Returns log(1 - Phi(a))."""
    return _log_above(a)[0]


@log_above.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    log_p, slope = _log_above(*primals)
    return log_p, slope * tangents[0]


def discretized_gaussian(
    x0: Float[Array, " b *dims"],
    mean: Float[Array, " b *dims"],
    log_variance: Float[Array, " b *#dims"],
    *,
    approximate_cdf: bool = False,
) -> Float[Array, " b *dims"]:
    """Returns log p(x_0) of each dimension in nats under the discretized Gaussian, Ho et al. (2020), Eq. 13.

    Args:
      x0: Images of the 256 levels {-1, -1 + 1/127.5, ..., 1}; see `check_levels`.
      mean: Mean of the Gaussian.
      log_variance: Log of its variance.
      approximate_cdf: Use the tanh approximation of Phi and probabilities of at least 1e-12, as the original code
        and its successors do, to compare with their results.
    """
    inverse_std = jnp.exp(-log_variance / 2)
    first, last = x0 < -1 + HALF_BIN, x0 > 1 - HALF_BIN
    if approximate_cdf:
        log_p = _log_tanh_bin(inverse_std * (x0 - mean), inverse_std * HALF_BIN, first, last)
        return jnp.maximum(log_p, math.log(FARTHEST))
    off, is_open = x0 - mean, first | last
    # The open bins begin half a bin inside of -1 and 1.
    above = log_above(_beyond_bin(jnp.where(first, -off, off), inverse_std))
    # Infinite derivatives of the branch not taken would make the other's NaN.
    closed = log_bin(jnp.where(is_open, 0.0, off), jnp.broadcast_to(log_variance, off.shape))
    return jnp.where(is_open, above, closed)


def _log_tanh_bin(z: Array, h: Array, first: Array, last: Array) -> Array:
    """Returns the log of Phi(z + h) - Phi(z - h) where Phi(z) is taken as (1 + tanh g(z)) / 2.

    With a = g(z + h) and b = g(z - h) that is sinh(a - b) / (2 cosh a cosh b), which loses no digits in the tails.
    """
    c, k = math.sqrt(2 / math.pi), 0.044715
    a, b = (c * (y + k * y**3) for y in (z + h, z - h))
    between = c * 2 * h * (1 + k * (3 * jnp.square(z) + jnp.square(h)))  # a - b
    same_side = jnp.sign(a) * jnp.sign(b) > 0
    nearer = jnp.where(same_side, jnp.minimum(jnp.abs(a), jnp.abs(b)), 0.0)
    outside = jnp.log1p(jnp.exp(-2 * jnp.abs(a))) + jnp.log1p(jnp.exp(-2 * jnp.abs(b)))
    closed = jnp.log(-jnp.expm1(-2 * between)) - 2 * nearer - outside
    open_ = jax.nn.log_sigmoid(2 * jnp.where(first, a, -b))
    return jnp.where(first | last, open_, closed)


def gaussian_density(
    x0: Float[Array, " b *dims"],
    mean: Float[Array, " b *dims"],
    log_variance: Float[Array, " b *#dims"],
) -> Float[Array, " b *dims"]:
    """Returns the log density of each dimension in nats: a decoder for data that is not discrete.

    Args:
      x0: Data.
      mean: Means.
      log_variance: Log variances, of each dimension or of all.
    """
    scaled = jnp.square(x0 - mean) * jnp.exp(-log_variance)
    return -(scaled + log_variance) / 2 - LOG_SQRT_2PI


# (x0, mean, log_variance) -> log-likelihood of each dimension in nats.
Decoder = Callable[[Array, Array, Array], Array]


def check_levels(x0: Float[np.ndarray, ...] | Float[Array, ...]) -> None:
    """Raises for images without 256 levels, whose bits a discretized decoder cannot count.

    Raises:
      InputError: A value that is not k / 127.5 - 1 for any k in {0, ..., 255}.
    """
    values = np.asarray(x0, np.float64)
    level = (values + 1) * 127.5
    wrong = ~(np.abs(level - np.clip(np.rint(level), 0, 255)) < 1e-3)
    if wrong.any():
        raise InputError(
            f"images hold {values[wrong].flat[0]:g}; the discretized decoder needs one of the 256 levels k / 127.5 - 1"
        )

"""The discretized Gaussian and its gradient in 40 digits."""

import mpmath
import numpy as np

mpmath.mp.dps = 40


def bin_in_40_digits(x0: float, mean: float, log_variance: float) -> tuple[float, float, float]:
    """Returns log p of the level and its derivatives by mean and by log variance, of these very numbers.

    The probability is a difference of two values of erfc in the tail, where that has all its digits, and
    derivatives are differences of densities over it.
    """
    x, m = mpmath.mpf(float(x0)), mpmath.mpf(float(mean))
    std = mpmath.exp(mpmath.mpf(float(log_variance)) / 2)
    half = mpmath.mpf(1) / 255
    a = -mpmath.inf if x < -1 + half else (x - half - m) / std
    b = mpmath.inf if x > 1 - half else (x + half - m) / std

    def above(z):
        return mpmath.erfc(z / mpmath.sqrt(2)) / 2

    def times_density(z):
        return mpmath.mpf(0) if mpmath.isinf(z) else z * mpmath.npdf(z)

    if a < 0 < b:
        p = 1 - above(-a) - above(b)
    else:
        p = above(a) - above(b) if a >= 0 else above(-b) - above(-a)
    by_mean = (mpmath.npdf(a) - mpmath.npdf(b)) / (std * p)
    by_log_variance = (times_density(a) - times_density(b)) / (2 * p)
    return float(mpmath.log(p)), float(by_mean), float(by_log_variance)


def scattered(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns levels, means and log variances, float32: std 1e-4 to 10, means up to 4,000 std off, a third at edges."""
    level = np.where(
        np.arange(n) % 3 == 0, 255 * rng.integers(2, size=n), rng.integers(256, size=n)
    )
    std = 10 ** rng.uniform(-4, 1, n)
    off = 10 ** rng.uniform(-3, np.log10(4000), n) * rng.choice([-1, 1], n)
    x0 = (level / 127.5 - 1).astype(np.float32)
    mean, log_variance = (x0 - off * std).astype(np.float32), (2 * np.log(std)).astype(np.float32)
    return x0, mean, log_variance


def in_40_digits(x0, mean, log_variance) -> np.ndarray:
    """Returns `bin_in_40_digits` of each of n levels, (3, n)."""
    return np.array(
        [bin_in_40_digits(*of_one) for of_one in zip(x0, mean, log_variance, strict=True)]
    ).T


def errors(x0, mean, log_variance, exact: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Returns the relative errors (3, n) of log p, and of its derivatives by mean, in units of std, and log variance.

    A probability within 1e-7 of 1 counts as 1, and a derivative smaller than 1e-7 as 0: float32 cannot place the
    edges of a bin so well that their logarithms and densities would be known better. Where the derivative by the log
    variance changes sign, it is compared with its part that comes from the distance to the mean.
    """
    std = np.exp(np.asarray(log_variance, float) / 2)
    unit = np.stack([np.ones_like(std), std, np.ones_like(std)])
    scale = np.abs(exact) * unit
    part = np.abs((np.asarray(x0, float) - mean) * exact[1]) / 2
    scale[2] = np.where(scale[2] > 1e-7, np.maximum(scale[2], part), scale[2])
    return np.where(scale > 1e-7, np.abs(got - exact) * unit / np.maximum(scale, 1e-7), 0.0)

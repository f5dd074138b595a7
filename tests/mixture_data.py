"""A mixture of normal distributions in the plane, whose denoiser and marginals are known in closed form.

An image's last axis are the two coordinates; its other dimensions hold independent draws. With r_k the probability
that x_t came from component k, of mean m_k and variance v_k,

    x_t | k ~ N(signal m_k, c_k), c_k = signal^2 v_k + std^2        (Bayes' rule for jointly normal x_0, eps, x_t)
    E[x_0 | x_t] = sum_k r_k (m_k + signal v_k / c_k (x_t - signal m_k))
    E[eps | x_t] = sum_k r_k std / c_k (x_t - signal m_k).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from diffusion_jax.models.denoiser import Prediction, complete
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.process import Grid, Point, Process
from diffusion_jax.samplers import SAMPLERS, Sampler

WEIGHTS = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
MEANS = np.array([[-0.6, -0.5], [0.5, -0.6], [0.7, 0.4], [-0.1, 0.6], [-0.8, 0.3]])
STDS = np.array([0.15, 0.1, 0.2, 0.08, 0.12])

MEAN = WEIGHTS @ MEANS
COVARIANCE = (MEANS - MEAN).T @ np.diag(WEIGHTS) @ (MEANS - MEAN) + WEIGHTS @ STDS**2 * np.eye(2)


def optimal(x_t: jax.Array, point: Point) -> Prediction:
    """The best prediction of x_0 and eps from x_t of shape (b, ..., 2)."""
    x0, eps = expected(x_t, per_image(point.signal, x_t), per_image(point.std, x_t), jnp)
    return complete(point, x0, eps)


def expected(x, signal, std, xp=np):
    """Returns E[x_0 | x_t] and E[eps | x_t] of x with shape (..., 2), where signal and std have shape (..., 1).

    eps is not taken from x_0: near the data that would be a difference of nearly equal numbers.
    """
    ones = (1,) * (x.ndim - 1)
    # Axes: those of x but the last, component, coordinate.
    w, m, v = (
        xp.asarray(a, dtype=x.dtype).reshape(*ones, len(WEIGHTS), -1)
        for a in (WEIGHTS, MEANS, STDS**2)
    )
    signal, std = signal[..., None], std[..., None]
    c = signal**2 * v + std**2
    away = x[..., None, :] - signal * m
    log_joint = xp.log(w / c) - (away**2).sum(-1, keepdims=True) / (2 * c)
    largest = log_joint.max(-2, keepdims=True)
    if (
        xp is jnp
    ):  # In a compiled program, no number may be equal to it: its derivative would be 0 / 0.
        largest = jax.lax.stop_gradient(largest)
    joint = xp.exp(log_joint - largest)
    r = joint / joint.sum(-2, keepdims=True)
    return (r * (m + signal * v / c * away)).sum(-2), (r * std / c * away).sum(-2)


def make_sampler(name: str, process: Process, grid: Grid, options: dict[str, Any]) -> Sampler:
    """The sampler of that name, given the process if it takes one."""
    return SAMPLERS[name].bind(grid=grid, process=process)(**options)


def flow(grid: Grid, x: np.ndarray, start: int, stop: int, *, num_steps: int = 1000) -> np.ndarray:
    """The probability-flow ODE from one point to another, not the data, in float64.

    With y = x_t / signal and s = log(std / signal), dy/ds = y - E[x_0 | x_t]: whatever the process and its times.
    The Runge-Kutta rule of order 4, in even steps of s.
    """
    log_signal = grid.log_signal[[start, stop]]
    first, last = np.log(grid.std[[start, stop]]) - log_signal
    h = (last - first) / num_steps

    def slope(y: np.ndarray, s: float) -> np.ndarray:
        ones = np.ones_like(y[..., :1])
        return y - expected(y, ones, np.exp(s) * ones)[0]

    y = np.asarray(x, np.float64) / np.exp(log_signal[0])
    for at in first + h * np.arange(num_steps):
        k1 = slope(y, at)
        k2 = slope(y + h / 2 * k1, at + h / 2)
        k3 = slope(y + h / 2 * k2, at + h / 2)
        k4 = slope(y + h * k3, at + h)
        y += h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * np.exp(log_signal[1])


def ks_distance(
    samples: Float[np.ndarray, "n 2"], signal: float = 1.0, std: float = 0.0
) -> Float[np.ndarray, " 2"]:
    """Returns the Kolmogorov-Smirnov distance of each coordinate from the exact marginal of signal x_0 + std eps."""
    x = np.sort(np.asarray(samples, np.float64), 0)
    away = x[..., None] - signal * MEANS.T[None]
    cdf = (ndtr(away / np.hypot(signal * STDS, std)) * WEIGHTS).sum(-1)
    below = np.arange(len(x))[:, None] / len(x)
    return np.maximum(cdf - below, below + 1 / len(x) - cdf).max(0)


def draw(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 2"]:
    """Returns draws from the mixture itself."""
    k = rng.choice(len(WEIGHTS), n, p=WEIGHTS)
    return MEANS[k] + STDS[k, None] * rng.normal(size=(n, 2))

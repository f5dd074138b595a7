"""Normal data, whose denoiser, probability-flow ODE and noised distributions are known in closed form."""

import jax
import numpy as np

from diffusion_jax.models.denoiser import Denoise, Prediction, complete
from diffusion_jax.processes.gaussian import eps_from_x0, per_image
from diffusion_jax.processes.process import Grid, Point

MEAN, STD = 0.3, 0.4


def optimal(x_t: jax.Array, point: Point) -> Prediction:
    """E[x_0 | x_t] for pixels N(MEAN, STD^2), by conditioning the joint normal of (x_0, x_t)."""
    gain = point.signal * STD**2 / (point.signal**2 * STD**2 + point.std**2)
    x0 = MEAN + per_image(gain, x_t) * (x_t - per_image(point.signal, x_t) * MEAN)
    return complete(point, x0, eps_from_x0(point, x_t, x0))


def width(grid: Grid, i: int) -> float:
    """Standard deviation of x_t at point i."""
    return float(np.sqrt(np.exp(2 * grid.log_signal[i]) * STD**2 + grid.std[i] ** 2))


def flow(grid: Grid, x: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The probability-flow ODE from one point to another: of normal data it keeps quantiles (Song et al., 2021)."""
    mean = [np.exp(grid.log_signal[i]) * MEAN for i in (start, stop)]
    return mean[1] + width(grid, stop) / width(grid, start) * (x - mean[0])


def counted(denoise: Denoise) -> tuple[Denoise, list[int]]:
    """Returns the denoiser and a list that grows by its batch at each call, on the host."""
    calls: list[int] = []

    def counting(x_t: jax.Array, point: Point) -> Prediction:
        jax.debug.callback(lambda: calls.append(len(x_t)))
        return denoise(x_t, point)

    return counting, calls


def slopes(errors: list[float]) -> np.ndarray:
    """Orders of convergence, from errors at numbers of steps that double."""
    return np.log2(np.asarray(errors)[:-1] / np.asarray(errors)[1:])

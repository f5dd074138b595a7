"""The one-step rules of the reverse-time SDE on normal data: strong and weak order, and the step to the data.

A step is affine there, x_s = a x_t + b + c z, so what it makes of mean and variance is known without drawing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import MEAN, STD, optimal, slopes, width
from slow import slow_after, slow_but

from diffusion_jax.keys import image_normal
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import PREDICTORS, Sampler, euler_maruyama, image_keys

PROCESSES = {"ddpm": DDPM(make_schedule("linear", 1000)), "vp": VP(), "subvp": SubVP(), "ve": VE()}


def affine(sampler: Sampler) -> np.ndarray:
    """Returns a, b and c of each step but the last, from what it makes of 0 and of 1 with known noise."""
    n = sampler.grid.num_steps - 1
    keys = image_keys(0, jnp.arange(n))

    def moved(x, i, key):
        return sampler.advance(optimal, sampler.init(x[None]), i, key[None]).x[0]

    step = jax.jit(lambda x: jax.vmap(moved)(x, jnp.arange(n), keys))
    z = np.asarray(image_normal(keys, (32,)), np.float64)
    of_0, of_1 = (np.asarray(step(jnp.full((n, 32), x)), np.float64) for x in (0.0, 1.0))
    c = (of_0 * (z - z.mean(1, keepdims=True))).mean(1) / z.var(1)
    return np.stack([(of_1 - of_0).mean(1), of_0.mean(1) - c * z.mean(1), c])


@pytest.mark.parametrize("process", slow_but(["ddpm"], PROCESSES))
@pytest.mark.parametrize("name", PREDICTORS)
def test_mean_and_variance_are_reached_with_order_1(name, process):
    """Weak order: what is left between the chain's moments and the exact ones halves in twice as many steps."""
    made, errors = PROCESSES[process], []
    for num_steps in (50, 100, 200):
        grid = make_grid(made, num_steps + 1, "logsnr")
        mean, variance = np.exp(grid.log_signal[0]) * MEAN, width(grid, 0) ** 2
        for a, b, c in affine(PREDICTORS[name](grid, made)).T:
            mean, variance = a * mean + b, a**2 * variance + c**2
        exact = width(grid, num_steps) ** 2
        # Both relative to the width, of which their float32 coefficients know 1e-5.
        errors.append(abs(variance / exact - 1))
        assert abs(mean - np.exp(grid.log_signal[-2]) * MEAN) < 0.02 * np.sqrt(exact)
    assert errors[0] > 1e-3
    # Euler and Maruyama's errors of order 1 nearly cancel where sigma falls by one factor in all steps.
    most = 2 if (name, process) == ("euler_maruyama", "ve") else 1.15
    assert 0.85 < slopes(errors)[-1] < most


def exact_end(process: VP | SubVP | VE, grid: Grid, y: np.ndarray, dw: np.ndarray) -> np.ndarray:
    """The reverse-time SDE's solution from x_0 = signal MEAN + y along a Brownian path, as deviation from the mean.

    Back in time dy = -(drift + diffusion^2 / w^2) y |dt| + diffusion dW, where w is the width of x_t, and forward
    d log w^2 / dt = 2 drift + diffusion^2 / w^2: so y signal / w^2 is the integral of diffusion signal / w^2 dW.
    """
    middle = (grid.time[:-2] + grid.time[1:-1]) / 2
    points, rates = process.at(middle), process.rates(middle)

    def factor(log_signal: np.ndarray, std: np.ndarray) -> np.ndarray:
        signal = np.exp(log_signal)
        return signal / (signal**2 * STD**2 + std**2)

    at_ends = factor(grid.log_signal, np.asarray(grid.std))
    sums = np.sqrt(rates.diffusion2) * factor(points.log_signal, points.std) @ dw
    return (y * at_ends[0] + sums) / at_ends[-2]


@pytest.mark.parametrize("process", slow_after(1, [VE(), VP(), SubVP()]))
def test_euler_and_maruyamas_rule_has_strong_order_1_along_one_brownian_path(process, rng):
    n, finest = 200, 2560
    u = np.linspace(0.05, 0.7, finest + 1)
    first, last = process.ends
    times = first + (last - first) * u
    dw = rng.normal(size=(finest, n)) * np.sqrt(times[1] - times[0])
    whole = make_grid(process, None, times.tolist())
    y = rng.normal(size=n) * width(whole, 0)
    exact = exact_end(process, whole, y, dw)
    errors = []
    for num_steps in (80, 160, 320):
        grid = make_grid(process, None, times[:: finest // num_steps].tolist())
        length = times[finest // num_steps] - times[0]
        noise = dw.reshape(num_steps, -1, n).sum(1) / np.sqrt(length)
        x = np.exp(grid.log_signal[0]) * MEAN + y
        for (a, b, c), z in zip(affine(euler_maruyama(grid, process)).T, noise, strict=True):
            x = a * x + b + c * z
        errors.append(np.sqrt(np.mean((x - np.exp(grid.log_signal[-2]) * MEAN - exact) ** 2)))
    # The path is known to a 2,560th.
    assert slopes(errors)[-1] == pytest.approx(1, abs=0.15)


def test_a_step_of_reverse_diffusion_is_that_of_appendix_e():
    """Of VP from u = 0.8 to 0.5: beta integrates to 0.1 u + 9.95 u^2, and x has score -(x - m) / w^2."""
    process = PROCESSES["vp"]
    grid = make_grid(process, None, [999 * 0.5, 999 * 0.8])
    integrals = [0.1 * u + 9.95 * u**2 for u in (0.5, 0.8)]
    kept = np.exp((integrals[0] - integrals[1]) / 2)
    width2 = np.exp(-integrals[1]) * STD**2 + 1 - np.exp(-integrals[1])
    variance = 1 - kept**2
    a, b, c = affine(PREDICTORS["reverse_diffusion"](grid, process))[:, 0]
    expected = np.array([2 - kept - variance / width2, np.sqrt(variance)])
    np.testing.assert_allclose([a, c], expected, rtol=1e-4)  # Of float32 numbers.
    assert b == pytest.approx(variance / width2 * np.exp(-integrals[1] / 2) * MEAN, rel=1e-3)


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_step_to_the_data_ends_at_x0_hat_without_noise(name):
    process = PROCESSES["subvp"]
    sampler = PREDICTORS[name](make_grid(process, 4), process)
    x = jnp.array([[0.2], [0.5]])
    after = sampler.advance(optimal, sampler.init(x), jnp.int32(3), image_keys(0, jnp.arange(2)))
    np.testing.assert_array_equal(after.x, optimal(x, sampler.grid.at(jnp.full(2, 3))).x0)
    np.testing.assert_array_equal(after.x, after.x0_hat)

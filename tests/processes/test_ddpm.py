"""The discrete process between its steps, and its grids against the schedule's closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import SPACINGS, make_grid
from diffusion_jax.processes.schedules import make_schedule, respace

NAMES = ["linear", "cosine", "sigmoid", "quad"]


def exact_alpha_bar(name: str, num_timesteps: int) -> np.ndarray:
    """alpha_bar of the steps, from float64 betas written out here once more."""
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "quad": np.linspace(0.01, 0.02**0.5, 1000) ** 2,
    }
    if name in betas:
        assert num_timesteps == 1000
        return np.cumprod(1 - betas[name])
    return np.exp(make_schedule(name, num_timesteps).log_alpha_bar)


@pytest.mark.parametrize("name", NAMES)
def test_at_a_step_signal_and_std_are_exact_to_one_rounding(compiled, name):
    process, alpha_bar = DDPM(make_schedule(name, 1000)), exact_alpha_bar(name, 1000)
    point = compiled(process.at)(jnp.arange(1000))
    np.testing.assert_array_equal(point.time, np.arange(1000))
    # A rounding to float32, and a root or an exponential in float64 or in float32 of it.
    np.testing.assert_allclose(point.signal, np.sqrt(alpha_bar), rtol=2e-7)
    np.testing.assert_allclose(point.std, np.sqrt(1 - alpha_bar), rtol=2e-7)


def test_minus_one_is_the_data_and_times_outside_give_nan():
    process = DDPM(make_schedule("linear", 60))
    point = process.at(jnp.array([-1.0, -1.01, 59.0, 59.01, jnp.nan]))
    np.testing.assert_array_equal([point.signal[0], point.std[0]], [1, 0])
    for values in point:
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, True, True])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_derivative_in_time_is_that_of_linear_log_alpha_bar_also_at_the_steps(compiled, name):
    process = DDPM(make_schedule(name, 1000))
    t = np.array([0.0, 1.0, 10.0, 499.0, 500.001, 900.5, 998.0])
    log_alpha_bar = np.append(0, process.schedule.log_alpha_bar)
    before = np.floor(t).astype(int) + 1
    slope = np.diff(log_alpha_bar)[before]
    alpha_bar = np.exp(log_alpha_bar[before] + (t - np.floor(t)) * slope)
    tangent = compiled(lambda t: jax.jvp(process.at, (t,), (jnp.ones_like(t),))[1])
    point = tangent(jnp.asarray(t, jnp.float32))
    # d alpha_bar / dt = alpha_bar slope, and std^2 = 1 - alpha_bar. The float32 of 500.001 is off by 2e-5 of a step.
    np.testing.assert_allclose(point.time, 1)
    np.testing.assert_allclose(point.signal, np.sqrt(alpha_bar) * slope / 2, rtol=2e-5)
    std = -alpha_bar * slope / (2 * np.sqrt(1 - alpha_bar))
    np.testing.assert_allclose(point.std, std, rtol=2e-5)


def test_a_respaced_schedule_is_refused():
    with pytest.raises(InputError, match="respaced"):
        DDPM(respace(make_schedule("linear", 100), 10))


@pytest.mark.parametrize("index", [-1, 11])
def test_an_index_outside_the_grid_gives_nan(index):
    grid = make_grid(DDPM(make_schedule("linear", 100)), 10)
    assert np.isfinite(grid.at(jnp.arange(11))).all()
    for values in grid.at(jnp.array([index])):
        assert np.isnan(values).all()


def test_between_steps_log_alpha_bar_is_linear(compiled):
    process = DDPM(make_schedule("cosine", 1000))
    t = np.array([-0.5, 0.25, 10.75, 500.5, 998.125])
    log_alpha_bar = np.append(0, process.schedule.log_alpha_bar)
    before = np.floor(t).astype(int) + 1
    fraction = t - np.floor(t)
    exact = (1 - fraction) * log_alpha_bar[before] + fraction * log_alpha_bar[before + 1]
    point = compiled(process.at)(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(point.time, t, rtol=1e-6)
    # float32 steps between two exact rows.
    np.testing.assert_allclose(point.signal, np.exp(exact / 2), rtol=1e-6)
    np.testing.assert_allclose(point.std, np.sqrt(-np.expm1(exact)), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_grid_has_the_closed_forms_of_the_paper(name):
    process, alpha_bar = DDPM(make_schedule(name, 1000)), exact_alpha_bar(name, 1000)
    previous = np.append(1.0, alpha_bar[:-1])
    betas = 1 - alpha_bar / previous
    grid = make_grid(process)
    table = gaussian.steps(grid)
    assert grid.num_steps == 1000
    np.testing.assert_array_equal(grid.time, np.arange(999, -2, -1))
    closed = {
        "variance": betas,
        "posterior_variance": betas * (1 - previous) / (1 - alpha_bar),
        "coef_x0": np.sqrt(previous) * betas / (1 - alpha_bar),
        "coef_xt": np.sqrt(1 - betas) * (1 - previous) / (1 - alpha_bar),
        "signal": np.sqrt(1 - betas),
    }
    for field, values in closed.items():
        # Differences of float64 products: 1e-16 over a beta of 1e-5 or more, in both.
        np.testing.assert_allclose(
            getattr(table, field)[::-1], values, rtol=1e-9, atol=1e-11, err_msg=field
        )
        in_float32 = np.asarray(getattr(table, field)[::-1], np.float32)
        np.testing.assert_allclose(in_float32, values, rtol=1e-6, atol=1e-11, err_msg=field)


@pytest.mark.parametrize("spacing", [*SPACINGS, (0, 7, 400, 999), (12.5, 700.25)])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_points_of_any_spacing_keep_their_marginals(name, spacing):
    process = DDPM(make_schedule(name, 1000))
    grid = make_grid(process, None if isinstance(spacing, tuple) else 13, spacing)
    point = process.at(jnp.asarray(grid.time, jnp.float32))
    assert (np.diff(grid.time) < 0).all() and grid.time[-1] == -1
    # Float32 times between steps are exact to 3e-5 of a step, whose log alpha_bar may fall by 7 where the signal
    # is below 0.005 (the end of cosine).
    np.testing.assert_allclose(grid.signal, point.signal, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(grid.std, point.std, rtol=5e-6)
    # The chain of the grid's own steps, iterated, leads to the marginal of every point.
    table = gaussian.steps(grid)
    signal, variance = 1.0, 0.0
    for i in range(grid.num_steps)[::-1]:
        signal = signal * table.signal[i]
        variance = variance * table.signal[i] ** 2 + table.variance[i]
        np.testing.assert_allclose(signal, np.exp(grid.log_signal[i]), rtol=1e-9)
        np.testing.assert_allclose(variance, grid.std[i] ** 2, rtol=1e-9)


def test_spacings_visit_the_steps_that_their_papers_name():
    process = DDPM(make_schedule("linear", 1000))
    expected = {
        "uniform": [0, 111, 222, 333, 444, 555, 666, 777, 888, 999],
        "leading": [0, 100, 200, 300, 400, 500, 600, 700, 800, 900],
        "trailing": [99, 199, 299, 399, 499, 599, 699, 799, 899, 999],
        "quadratic": [round(999 * (i / 9) ** 2) for i in range(10)],
    }
    for spacing, times in expected.items():
        np.testing.assert_array_equal(make_grid(process, 10, spacing).time, [*times[::-1], -1])


def test_logsnr_spacing_is_even_in_logsnr():
    grid = make_grid(DDPM(make_schedule("cosine", 1000)), 20, "logsnr")
    logsnr = 2 * (grid.log_signal[:-1] - np.log(grid.std[:-1]))
    np.testing.assert_allclose(np.diff(logsnr), (logsnr[-1] - logsnr[0]) / 19, rtol=1e-6)
    np.testing.assert_allclose(grid.time[[0, 19]], [999, 0], atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "jsd"])
def test_the_times_of_a_logsnr_are_where_the_points_have_it(schedule):
    process = DDPM(make_schedule(schedule, 1000))
    times = np.array([999.0, 0.0, 512.25, 7.5])
    points = process.at(times)
    logsnr = 2 * (points.log_signal - np.log(points.std))
    np.testing.assert_allclose(process.times_of(logsnr), times, atol=1e-6)
    # Beyond what the steps have, the nearest end.
    np.testing.assert_array_equal(process.times_of(np.array([-1e3, 1e3])), [999, 0])
    for exact, rounded in zip(points.at(jnp.arange(4)), process.at(jnp.array(times)), strict=True):
        np.testing.assert_allclose(exact, rounded, rtol=1e-6)
    assert process.at(np.array([-1.0])).std == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "jsd"])
def test_karras_spacing_is_equation_5_of_the_paper(schedule):
    process = DDPM(make_schedule(schedule, 1000))
    whole, grid = make_grid(process), make_grid(process, 12, "karras")
    sigma_max, sigma_min = np.exp(-whole.log_signal[[0, -2]]) * whole.std[[0, -2]]
    assert sigma_max > 80  # 157 if linear: the paper's largest noise is less.
    sigma_max = 80.0
    i, rho = np.arange(12), 7
    slope = (sigma_min ** (1 / rho) - sigma_max ** (1 / rho)) / 11
    expected = (sigma_max ** (1 / rho) + i * slope) ** rho
    np.testing.assert_allclose(np.exp(-grid.log_signal[:-1]) * grid.std[:-1], expected, rtol=1e-6)
    np.testing.assert_allclose(grid.time[11], 0, atol=1e-9)


def test_karras_spacing_begins_at_the_last_timestep_where_there_is_less_noise():
    process = DDPM(make_schedule("linear", 1000, beta_end=0.01))  # sigma = 12 at most.
    np.testing.assert_allclose(make_grid(process, 12, "karras").time[[0, 11]], [999, 0], atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 99, 100])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_spacing_gives_as_many_distinct_times_as_asked_for(num_steps, spacing):
    grid = make_grid(DDPM(make_schedule("linear", 100)), num_steps, spacing)
    assert grid.num_steps == num_steps
    assert (np.diff(grid.time) < 0).all() and grid.time[0] <= 99 and grid.time[-2] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "uniform"), "num_steps is 0; .*from 1 to 100"),
        ((101, "uniform"), "num_steps is 101"),
        (
            (10, "even"),
            "unknown spacing 'even'.*uniform, leading, trailing, quadratic, logsnr, karras",
        ),
        ((None, (0, 100)), "distinct times from 0 to 99"),
        ((None, (5, 5)), "distinct times"),
        ((None, ()), "distinct times"),
        ((None, (float("nan"), 3.0)), "distinct times"),
        ((3, (0, 99)), "num_steps is 3, but spacing lists 2"),
    ],
)
def test_wrong_grids_are_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message):
        make_grid(DDPM(make_schedule("linear", 100)), *arguments)

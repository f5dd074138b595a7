"""VP, sub-VP and VE: signal and std against integrals of the SDE's coefficients, VP against DDPM, times and grids."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion_jax.errors import InputError
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import SPACINGS, make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Rates, namespace
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, ContinuousProcess, SubVP

CONTINUOUS = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_min=0.02, sigma_max=50.0),
    "vp of other betas": VP(beta_min=0.5, beta_max=8.0),
}
ALL = {**CONTINUOUS, "ddpm": DDPM(make_schedule("linear", 1000))}


def inside(process, n: int = 57) -> np.ndarray:
    """Times within the grid's, no integers."""
    first, last = make_grid(process).time[[-2, 0]]
    return first + (last - first) * np.linspace(0.013, 0.987, n)


def coefficients(name: str, u: float) -> tuple[float, float]:
    """f and g^2 by u as Song et al. (2021) print them, Eq. 9, 11 and 12."""
    process = CONTINUOUS[name]
    if name == "ve":
        ratio = process.sigma_max / process.sigma_min
        return 0.0, (process.sigma_min * ratio**u) ** 2 * 2 * np.log(ratio)
    beta = process.beta_min + u * (process.beta_max - process.beta_min)
    integral = process.beta_min * u + (process.beta_max - process.beta_min) * u**2 / 2
    return -beta / 2, beta * (1 - np.exp(-2 * integral)) if name == "subvp" else beta


@pytest.mark.parametrize("name", CONTINUOUS)
def test_signal_and_std_solve_the_equations_of_the_sdes_moments(name):
    def slope(u, moments):
        f, g2 = coefficients(name, u)
        return [
            f,
            2 * f * moments[1] + g2,
        ]  # d log signal / du and d std^2 / du (Särkkä & Solin, 2019).

    process = CONTINUOUS[name]
    u = np.linspace(0.01, 1, 20)
    start = [0.0, process.sigma_min**2 if name == "ve" else 0.0]
    exact = solve_ivp(slope, (0, 1), start, t_eval=u, rtol=1e-10, atol=1e-14).y
    first, last = process.ends
    points = process.at(first + (last - first) * u)
    np.testing.assert_allclose(points.log_signal, exact[0], atol=1e-8)
    np.testing.assert_allclose(points.std, np.sqrt(exact[1]), rtol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_rates_are_the_derivatives_of_log_signal_and_of_logsnr(name):
    process = ALL[name]
    time = inside(process)
    h = 1e-5
    after, before = process.at(time + h), process.at(time - h)
    rates = process.rates(time)
    drift = (after.log_signal - before.log_signal) / (2 * h)
    fall = -(after.logsnr - before.logsnr) / (2 * h)
    # Central differences: h^2 of a third derivative, and a rounding of 1e-16 / h.
    np.testing.assert_allclose(rates.drift, drift, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(rates.diffusion2 / process.at(time).std ** 2, fall, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_in_a_compiled_program_all_is_as_on_the_host(name, compiled):
    process = ALL[name]
    time = inside(process)
    points, rates = process.at(time), process.rates(time)

    def traced(time, logsnr):
        return process.at(time), process.rates(time), process.times_of(logsnr)

    t, logsnr = jnp.asarray(time, jnp.float32), jnp.asarray(points.logsnr, jnp.float32)
    point, rates32, back = compiled(traced)(t, logsnr)
    # A time of 1,000 has seven digits, 6e-5: near the data, of a time of 13, that is 5e-6 of B and of the variance.
    np.testing.assert_allclose(point.signal, points.signal, rtol=1e-5)
    np.testing.assert_allclose(point.std, points.std, rtol=1e-5)
    np.testing.assert_allclose(rates32.drift, rates.drift, rtol=1e-5)
    np.testing.assert_allclose(rates32.diffusion2, rates.diffusion2, rtol=1e-5)
    np.testing.assert_allclose(back, time, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_times_of_is_the_inverse_of_logsnr(name):
    process = ALL[name]
    time = inside(process)
    if name == "ddpm":
        time = np.round(time)
    np.testing.assert_allclose(process.times_of(process.at(time).logsnr), time, rtol=1e-9)
    # Beyond the ends, the ends.
    first, last = make_grid(process).time[[-2, 0]] if name == "ddpm" else process.ends
    np.testing.assert_allclose(
        process.times_of(np.array([200.0, -200.0])), [first, last], atol=1e-9
    )


def test_vp_is_the_limit_of_ddpms_chain_for_many_steps():
    vp = VP()
    for num_steps, tolerance in ((1000, 2e-2), (10_000, 2e-3)):
        ddpm = DDPM(make_schedule("linear", num_steps, 0.1 / num_steps, 20 / num_steps))
        t = np.arange(0, num_steps, num_steps // 10) + num_steps // 20
        u = (t + 1) / num_steps
        chain, limit = ddpm.at(t * 1.0), vp.at(999 * u)
        # log(1 - beta) = -beta - beta^2 / 2: beta is up to 20 / N, so the sums differ by up to half of that.
        np.testing.assert_allclose(chain.log_signal, limit.log_signal, rtol=tolerance)
        np.testing.assert_allclose(chain.std, limit.std, rtol=tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize(("num_steps", "u_min"), [(1, None), (7, 1e-4), (50, None)])
def test_every_spacing_goes_from_noise_to_u_min_and_then_to_the_data(
    name, spacing, num_steps, u_min
):
    process = CONTINUOUS[name]
    grid = make_grid(process, num_steps, spacing, u_min)
    u_min = u_min or (1e-5 if name == "ve" else 1e-3)
    assert grid.num_steps == num_steps and grid.std[-1] == 0 and grid.log_signal[-1] == 0
    assert (np.diff(grid.logsnr[:-1]) > 0).all()
    first, last = process.ends
    u = (grid.time[:-1] - first) / (last - first)
    assert u.min() > 0.999 * u_min and u.max() <= 1 + 1e-12
    if spacing in ("uniform", "quadratic", "logsnr") and num_steps > 1:
        np.testing.assert_allclose(u[[0, -1]], [1, u_min], rtol=1e-6)


def test_even_steps_are_even_in_u_for_any_number_of_them():
    for process in CONTINUOUS.values():
        np.testing.assert_allclose(np.diff(make_grid(process, 37).time[:-1], 2), 0, atol=1e-9)
        assert make_grid(process, 2000).num_steps == 2000


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
@pytest.mark.parametrize(
    ("process", "u_min"),
    [(VP(num_timesteps=4), 1e-5), (SubVP(num_timesteps=4), None), (NCSN(num_timesteps=4), None)],
)
def test_levels_are_even_in_log_sigma_and_in_its_7th_root_however_few_the_steps_of_a_whole_grid(
    process, u_min, spacing
):
    grid = make_grid(process, 18, spacing, u_min)
    log_sigma = -grid.logsnr[:-1] / 2
    levels = log_sigma if spacing == "logsnr" else np.exp(log_sigma / 7)
    np.testing.assert_allclose(np.diff(levels, 2), 0, atol=1e-6 * np.ptp(levels))


@pytest.mark.parametrize("make", [VP, SubVP, VE])
def test_a_whole_grid_of_one_step_begins_at_the_prior(make):
    process = make(num_timesteps=1)
    np.testing.assert_allclose(make_grid(process).time, process.ends[::-1])
    np.testing.assert_allclose(make_grid(process, 9).time, make_grid(make(), 9).time)


def test_listed_times_are_the_processes_own():
    grid = make_grid(CONTINUOUS["ve"], None, (-1.5, 0.0, 3))
    np.testing.assert_allclose(grid.std[:-1], np.exp([3, 0, -1.5]))
    last = float(np.log(50.0))  # Which the process has in another way, with other rounding.
    np.testing.assert_allclose(make_grid(CONTINUOUS["ve"], None, (0.0, last)).std[:-1], [50, 1])
    with pytest.raises(InputError, match="distinct times from -3.91"):
        make_grid(CONTINUOUS["ve"], None, (-5.0, 1.0))


def test_times_outside_give_nan_and_rounding_at_the_ends_does_not():
    for process in CONTINUOUS.values():
        first, last = process.ends
        wide = last - first
        point = process.at(jnp.array([first - 0.01 * wide, first, last, last + 0.01 * wide]))
        for values in point:
            np.testing.assert_array_equal(np.isnan(values), [True, False, False, True])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VE, {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min is 2.0 and sigma_max is 1.0"),
        (VE, {"sigma_min": 0.0}, "sigma_min is 0.0"),
        (VP, {"beta_min": 20.0}, "beta_min is 20.0 and beta_max is 20.0"),
        (SubVP, {"beta_min": -1.0}, "beta_min is -1.0"),
        (VE, {"num_timesteps": 0}, "num_timesteps is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("u_min", [0.0, 1.0, np.nan])
def test_a_smallest_u_of_a_grid_is_between_data_and_noise(u_min):
    with pytest.raises(InputError, match=f"u_min is {u_min}; it must be in the open interval"):
        make_grid(VP(), 3, u_min=u_min)


@pytest.mark.parametrize("process", [ALL["ddpm"], NCSN()])
def test_a_discrete_process_has_no_smallest_u(process):
    with pytest.raises(InputError, match="u_min is 0.1, but a discrete process has none"):
        make_grid(process, 3, u_min=0.1)


@pytest.mark.parametrize("spacing", ["uniform", "leading", "karras", "logsnr"])
@pytest.mark.parametrize("process", [VE(sigma_min=0.01, sigma_max=100.0), NCSN(sigma_max=1348.0)])
def test_the_prior_of_a_grid_is_the_noise_of_its_own_first_point(process, spacing):
    grid = make_grid(process, 18, spacing)
    assert grid.prior_std == pytest.approx(grid.std[0], rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_whole_grid_has_the_prior_of_the_process(name):
    assert make_grid(ALL[name]).prior_std == pytest.approx(ALL[name].prior_std, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_at_no_signal_and_at_no_noise_times_of_is_an_end(name, compiled):
    process = ALL[name]
    ends = make_grid(process).time[[-2, 0]] if name == "ddpm" else process.ends
    infinite = [np.inf, -np.inf]
    np.testing.assert_allclose(process.times_of(np.array(infinite)), ends, atol=1e-9)
    np.testing.assert_allclose(compiled(process.times_of)(jnp.array(infinite)), ends, rtol=1e-6)


def test_the_smallest_signal_is_one_at_a_time_and_on_the_host():
    """The end of jsd erases the image: log signal falls without end in the last step."""
    process = DDPM(make_schedule("jsd", 1000))
    time = np.array([990.0, 998.0, 998.5, 998.9, 999.0])
    at, points = process.at(jnp.asarray(time, jnp.float32)), process.at(time)
    np.testing.assert_allclose(at.signal, points.signal, rtol=1e-3)  # float32 of the time: 6e-5.
    steep = VP(beta_max=200.0)
    assert float(steep.at(jnp.array([999.0])).signal[0]) == pytest.approx(np.exp(-20), rel=1e-6)


class CosineVP(ContinuousProcess):
    """A process of one's own that keeps the variance, of which prior_std says all that there is."""

    @property
    def prior_std(self):
        return 1.0

    @property
    def ends(self):
        return 0.0, 1.0

    def log_signal(self, u):
        return namespace(u).log(namespace(u).cos(1.55 * u))

    def std(self, u):
        return namespace(u).sin(1.55 * u)

    def rates_in_u(self, u):
        tan = 1.55 * namespace(u).tan(1.55 * u)
        return Rates(-tan, 2 * tan)

    def u_of(self, logsnr):
        return namespace(logsnr).arctan(namespace(logsnr).exp(-logsnr / 2)) / 1.55


@pytest.mark.parametrize("process", [VP(), SubVP(), CosineVP()])
def test_where_the_signal_falls_every_grid_has_the_prior_of_the_process(process):
    first, last = process.ends
    times = (first + (last - first) * np.array([0.1, 0.4])).tolist()
    assert make_grid(process, None, times).prior_std == process.prior_std
    assert make_grid(process, 7, "leading").prior_std == process.prior_std

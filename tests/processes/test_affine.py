"""Processes from f and g alone: against the closed forms of VP, sub-VP and VE, and against an ODE solver."""

import jax.numpy as jnp
import numpy as np
import pytest
from mixture_data import optimal
from scipy.integrate import solve_ivp

from diffusion_jax.errors import InputError
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.affine import Affine
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import ddim, image_keys, sample_loop


def beta(u):
    return 0.1 + 19.9 * u


def integral(u):
    return 0.1 * u + 19.9 * u**2 / 2


# The coefficients of Song et al. (2021), Eq. 9, 11 and 12, and the processes with their closed forms.
KNOWN = {
    "vp": (Affine(drift=lambda u: -beta(u) / 2, diffusion=lambda u: np.sqrt(beta(u))), VP()),
    "subvp": (
        Affine(
            drift=lambda u: -beta(u) / 2,
            diffusion=lambda u: np.sqrt(-beta(u) * np.expm1(-2 * integral(u))),
        ),
        SubVP(),
    ),
    "ve": (
        Affine(
            drift=lambda u: 0 * u,
            diffusion=lambda u: 0.02 * 5000**u * np.sqrt(2 * np.log(5000)),
            first_std=0.02,
        ),
        VE(),
    ),
}


def times_of_u(process, u):
    first, last = process.ends
    return first + (last - first) * u


U = np.concatenate([np.geomspace(1e-6, 0.01, 40), np.linspace(0.01, 1, 200)])


@pytest.mark.parametrize("name", KNOWN)
def test_signal_and_std_are_the_closed_forms_of_these_coefficients(name):
    affine, known = KNOWN[name]
    points, exact = (process.at(times_of_u(process, U)) for process in (affine, known))
    np.testing.assert_allclose(points.log_signal, exact.log_signal, rtol=1e-12, atol=1e-15)
    # Cubics over cells of at most 1/2048: an error of size^4 / 384 of the fourth derivative, up to 18^4 for VE.
    np.testing.assert_allclose(points.std, exact.std, rtol=1e-10)
    np.testing.assert_allclose(affine.prior_std, known.std(np.ones(1))[0], rtol=1e-10)
    assert isinstance(affine, Process)


def test_coefficients_without_closed_form_lead_to_the_moments_of_an_ode_solver():
    affine = Affine(
        drift=lambda u: np.sin(5 * u) - np.exp(u),
        diffusion=lambda u: 1 + np.cos(3 * u) ** 2,
        first_std=0.3,
    )

    def slope(u, moments):
        f, g = np.sin(5 * u) - np.exp(u), 1 + np.cos(3 * u) ** 2
        return [f, 2 * f * moments[1] + g**2]

    u = np.linspace(0.003, 1, 30)
    exact = solve_ivp(slope, (0, 1), [0, 0.09], t_eval=u, rtol=1e-11, atol=1e-13).y
    points = affine.at(999 * u)
    np.testing.assert_allclose(points.log_signal, exact[0], atol=1e-9)
    np.testing.assert_allclose(points.std, np.sqrt(exact[1]), rtol=1e-9)


@pytest.mark.parametrize("name", KNOWN)
def test_in_a_compiled_program_all_is_as_in_closed_form(name, compiled):
    affine, known = KNOWN[name]
    u = U[10::7]  # From 1e-5 on, the smallest u of training.
    points, rates = (
        known.at(times_of_u(known, u)),
        known.rates_in_u(u),
    )

    def traced(time, logsnr):
        return affine.at(time), affine.rates(time), affine.times_of(logsnr)

    time, logsnr = (jnp.asarray(x, jnp.float32) for x in (999 * u, points.logsnr))
    point, rates32, back = compiled(traced)(time, logsnr)
    # Linear between knots, g^2 is off by 1e-5; so is u, in float32, times the slope of log std by u.
    np.testing.assert_allclose(point.signal, points.signal, rtol=1e-5)
    np.testing.assert_allclose(point.std, points.std, rtol=1e-5)
    np.testing.assert_allclose(999 * rates32.drift, rates.drift, rtol=2e-5)
    np.testing.assert_allclose(999 * rates32.diffusion2, rates.diffusion2, rtol=2e-5)
    np.testing.assert_allclose(back, 999 * u, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_times_of_is_the_inverse_of_logsnr_and_beyond_the_ends_an_end(name):
    affine, known = KNOWN[name]
    logsnr = known.at(times_of_u(known, U)).logsnr
    # An error of std of 1e-11, which is one of u of VE, is a larger part of the smallest u, 1e-6.
    atol = 1e-7 if name == "ve" else 0.0
    np.testing.assert_allclose(affine.times_of(logsnr), 999 * U, rtol=1e-8, atol=atol)
    np.testing.assert_allclose(affine.times_of(np.array([200.0, -200.0])), [0, 999])


@pytest.mark.parametrize("name", KNOWN)
def test_neighbors_of_a_grid_have_the_closed_form_of_the_noise_between_them(name):
    affine, known = KNOWN[name]
    table, exact = (
        gaussian.steps(make_grid(process, 2000, "uniform")) for process in (affine, known)
    )
    # Of VE the grid's smallest u is the same but for rounding; a difference of variances loses three digits.
    np.testing.assert_allclose(table.signal, exact.signal, rtol=1e-12)
    np.testing.assert_allclose(table.variance, exact.variance, rtol=1e-6)


def test_a_sampler_draws_what_it_draws_of_the_closed_form():
    affine, known = KNOWN["vp"]
    images = [
        sample_loop(optimal, ddim(make_grid(process, 10)), image_keys(0, jnp.arange(3)), (2,))
        for process in (affine, known)
    ]
    np.testing.assert_allclose(images[0].images, images[1].images, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_std": -1.0}, "first_std is -1.0"),
        ({"drift": lambda u: -1.0}, r"drift returns an array of shape \(\) for 4097 values of u"),
        (
            {"diffusion": lambda u: np.full_like(u, np.nan)},
            "diffusion returns .* one finite number",
        ),
        ({"diffusion": lambda u: np.maximum(u - 0.5, 0)}, "is 0 for some u"),
        ({"first_std": 1e30}, "is not strictly decreasing"),
    ],
)
def test_coefficients_that_make_no_process_are_refused(options, message):
    usual = {"drift": lambda u: -u, "diffusion": lambda u: 1 + u}
    with pytest.raises(InputError, match=message):
        Affine(**{**usual, **options})


@pytest.mark.parametrize("times", [(100.0, 300.0), (100.0, 500.0, 999.0)])
def test_a_grid_of_vps_sde_has_vps_prior_wherever_it_begins(times):
    affine, known = KNOWN["vp"]
    assert make_grid(affine, None, times).prior_std == pytest.approx(
        make_grid(known, None, times).prior_std,
        rel=1e-4,  # std at u = 1 is short of 1 by that.
    )

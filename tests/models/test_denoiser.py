"""Every prediction type leads to the same denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays
from diffusion_jax.processes.sde import VE

SCHEDULE = make_schedule("linear", 100)
PROCESS = DDPM(SCHEDULE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_of_any_kind_gives_the_true_x0_eps_v_and_score(compiled, rng, prediction):
    t = jnp.array([0, 10, 50, 99])
    alpha_bar = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))[np.asarray(t)][
        :, None, None, None
    ]
    x0, eps = rng.normal(size=(2, 4, 3, 3, 2))
    x_t = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    truth = {
        "x0": x0,
        "eps": eps,
        "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x0,
        "score": -(x_t - np.sqrt(alpha_bar) * x0) / (1 - alpha_bar),
    }
    # Bayes' rule with precisions: 1 / (1 - alpha_bar_s) of the prior, alpha / beta of the likelihood of x_t.
    all_alpha_bar = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))
    before = np.append(all_alpha_bar, 1.0)[np.asarray(t) - 1][:, None, None, None]
    alpha, beta = alpha_bar / before, 1 - alpha_bar / before
    var_s = 1 - before
    mean = (np.sqrt(before) * x0 * beta + var_s * np.sqrt(alpha) * x_t) / (beta + alpha * var_s)
    truth = {name: jnp.asarray(value, jnp.float32) for name, value in truth.items()}

    def run(params, x_t):
        denoise = DiffusionModel(PROCESS, prediction, lambda params, *_: params).denoiser(params)
        return denoise(x_t, PROCESS.at(t))

    # Karras et al. (2022), Eq. 8 and Table 1, with sigma_data = 0.5.
    sigma = np.sqrt(1 / alpha_bar - 1)
    skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
    outputs = truth | {
        "mean": jnp.asarray(mean, jnp.float32),
        "score": -truth["eps"],
        "velocity": truth["eps"] - truth["x0"],
        "edm": jnp.asarray((x0 - skip * (x0 + sigma * eps)) / out, jnp.float32),
    }
    output = outputs[prediction]
    predicted = compiled(run)(output, jnp.asarray(x_t, jnp.float32))
    for name, value in truth.items():
        # x0 from eps divides a float32 rounding by sqrt(alpha_bar) = 6e-3, the score by sqrt(1 -
        # alpha_bar) = 0.03; x0 from the mean by its coefficient, down to 1e-3.
        tolerance = 2e-3 if prediction == "mean" else 2e-4
        np.testing.assert_allclose(getattr(predicted, name), value, atol=tolerance, rtol=tolerance)


def test_the_network_is_given_params_labels_and_the_time_of_the_point():
    seen = {}

    def apply_fn(params, x_t, t, labels):
        seen.update(params=params, t=t, labels=labels)
        return x_t

    denoise = DiffusionModel(PROCESS, "eps", apply_fn).denoiser("params", jnp.array([7, 8]))
    denoise(jnp.zeros((2, 1, 1, 1)), make_grid(PROCESS, 4).at(jnp.array([2, 0])))
    assert seen["params"] == "params"
    np.testing.assert_array_equal(seen["labels"], [7, 8])
    np.testing.assert_array_equal(seen["t"], [33, 99])
    assert seen["t"].dtype == jnp.float32


def test_the_network_is_given_x_t_divided_by_the_size_of_data_and_noise(compiled):
    """Of VE, c_in = 1 / (sigma_data^2 + sigma^2)^(1/2) of Karras et al. (2022), with sigma_data = 1."""
    process = VE(sigma_min=0.01, sigma_max=100.0)
    point = process.at(jnp.log(jnp.array([0.02, 1.0, 90.0])))
    denoise = DiffusionModel(process, "x0", lambda params, x, *_: x).denoiser(None)
    c_in = 1 / np.sqrt(1 + np.array([0.02, 1.0, 90.0]) ** 2)
    given = compiled(lambda x: denoise(x, point).x0)(7 * jnp.ones((3, 1)))
    np.testing.assert_allclose(given[:, 0], 7 * c_in, rtol=1e-5)


def test_an_unknown_prediction_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown prediction 'epsilon'.*eps, x0, v, mean"):
        DiffusionModel(PROCESS, "epsilon", lambda params, x_t, t, labels: x_t).denoiser(None)


def test_forms_that_are_not_used_cost_nothing_under_jit():
    """x0 of an x0 network is its output: no arithmetic is left, while its eps needs a division."""

    def operations(form):
        def predicted(output, x, point):
            return getattr(
                DiffusionModel(PROCESS, "x0", lambda params, *_: params).denoiser(output)(x, point),
                form,
            )

        x = jnp.ones((1, 2))
        program = jax.jit(predicted).lower(x, x, PROCESS.at(jnp.array([3]))).compile()
        return [
            name for name in ("divide", "multiply", "subtract") if name in str(program.as_text())
        ]

    assert operations("x0") == []
    assert "divide" in operations("eps") and "subtract" in operations("eps")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipping_limits_x0_and_takes_the_other_forms_from_it(compiled, rng, prediction):
    point = Point(jnp.zeros(3), jnp.array([0.9, 0.6, 1.0]), jnp.array([0.3, 0.8, 5.0]))
    x_t, output = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 1)) * 3, jnp.float32)
    denoise = DiffusionModel(PROCESS, prediction, lambda params, *_: params).denoiser(output)
    plain, clipped = compiled(denoise)(x_t, point), compiled(clip_denoised(denoise))(x_t, point)
    # Two programs, which the compiler may fuse differently: float32 rounding.
    np.testing.assert_allclose(clipped.x0, np.clip(plain.x0, -1, 1), rtol=1e-5, atol=1e-6)
    assert np.abs(plain.x0).max() > 1 and np.abs(clipped.x0).max() == 1
    signal, std = (np.asarray(values, float)[:, None, None, None] for values in point[1:])
    eps = (np.asarray(x_t, float) - signal * np.clip(np.asarray(plain.x0, float), -1, 1)) / std
    np.testing.assert_allclose(clipped.eps, eps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clipped.score, -eps / std, rtol=1e-5, atol=1e-5)


def test_a_network_with_twice_the_channels_gives_the_prediction_first_and_then_the_fraction(
    compiled, rng
):
    output = jnp.asarray(rng.normal(size=(2, 3, 3, 4)), jnp.float32)
    x_t, point = (
        jnp.asarray(rng.normal(size=(2, 3, 3, 2)), jnp.float32),
        PROCESS.at(jnp.array([5, 60])),
    )
    whole = DiffusionModel(PROCESS, "eps", lambda params, *_: params).denoiser(output)
    half = DiffusionModel(PROCESS, "eps", lambda params, *_: params).denoiser(output[..., :2])
    expected = compiled(clip_denoised(half))(x_t, point)
    predicted = compiled(clip_denoised(whole))(x_t, point)
    for form in ("x0", "eps", "v", "score"):
        np.testing.assert_array_equal(getattr(predicted, form), getattr(expected, form))
    # -1 is the posterior's variance, 1 that of the forward step.
    np.testing.assert_allclose(2 * predicted.fraction - 1, output[..., 2:], atol=1e-6)
    assert expected.fraction is None


def test_another_number_of_channels_is_refused():
    denoise = DiffusionModel(PROCESS, "eps", lambda params, *_: jnp.zeros((2, 3, 3, 3))).denoiser(
        None
    )
    with pytest.raises(InputError, match=r"returns \(2, 3, 3, 3\) for images of \(2, 3, 3, 2\)"):
        denoise(jnp.zeros((2, 3, 3, 2)), PROCESS.at(jnp.array([5, 60])))

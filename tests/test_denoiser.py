"""Every prediction type leads to the same denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoiser import PARAMETERIZATIONS, make_denoiser
from diffusion_jax.errors import InputError
from diffusion_jax.guidance import clip_denoised
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule

SCHEDULE = make_schedule("linear", 100)
PROCESS = DDPM(SCHEDULE)


@pytest.mark.parametrize("prediction", PARAMETERIZATIONS)
def test_a_perfect_network_of_any_kind_gives_the_true_x0_eps_v_and_score(compiled, rng, prediction):
    t = jnp.array([0, 10, 50, 99])
    alpha_bar = np.cumprod(1 - SCHEDULE.betas.astype(float))[np.asarray(t)][:, None, None, None]
    x0, eps = rng.normal(size=(2, 4, 3, 3, 2))
    x_t = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    truth = {
        "x0": x0,
        "eps": eps,
        "v": np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x0,
        "score": -(x_t - np.sqrt(alpha_bar) * x0) / (1 - alpha_bar),
    }
    truth = {name: jnp.asarray(value, jnp.float32) for name, value in truth.items()}

    def run(params, x_t):
        denoise = make_denoiser(prediction, lambda params, *_: params, params)
        return denoise(x_t, PROCESS.at(t))

    predicted = compiled(run)(truth[prediction], jnp.asarray(x_t, jnp.float32))
    for name, value in truth.items():
        # x0 from eps divides a float32 rounding by sqrt(alpha_bar) = 6e-3, the score by sqrt(1 -
        # alpha_bar) = 0.03.
        np.testing.assert_allclose(getattr(predicted, name), value, atol=2e-4, rtol=2e-4)


def test_the_network_is_given_params_labels_and_the_time_of_the_point():
    seen = {}

    def apply_fn(params, x_t, t, labels):
        seen.update(params=params, t=t, labels=labels)
        return x_t

    denoise = make_denoiser("eps", apply_fn, "params", labels=jnp.array([7, 8]))
    denoise(jnp.zeros((2, 1, 1, 1)), PROCESS.grid(4).at(jnp.array([2, 0])))
    assert seen["params"] == "params"
    np.testing.assert_array_equal(seen["labels"], [7, 8])
    np.testing.assert_array_equal(seen["t"], [33, 99])
    assert seen["t"].dtype == jnp.float32


def test_an_unknown_prediction_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown prediction 'epsilon'.*eps, x0, v"):
        make_denoiser("epsilon", lambda params, x_t, t, labels: x_t, None)


def test_forms_that_are_not_used_cost_nothing_under_jit():
    """x0 of an x0 network is its output: no arithmetic is left, while its eps needs a division."""
    denoise = make_denoiser("x0", lambda params, x_t, t, labels: x_t, None)

    def operations(form):
        function = jax.jit(lambda x, point: getattr(denoise(x, point), form))
        program = function.lower(jnp.ones((1, 2)), PROCESS.at(jnp.array([3]))).compile()
        return [
            name for name in ("divide", "multiply", "subtract") if name in str(program.as_text())
        ]

    assert operations("x0") == []
    assert "divide" in operations("eps") and "subtract" in operations("eps")


@pytest.mark.parametrize("prediction", PARAMETERIZATIONS)
def test_clipping_limits_x0_and_takes_the_other_forms_from_it(compiled, rng, prediction):
    point = Point(jnp.zeros(3), jnp.array([0.9, 0.6, 1.0]), jnp.array([0.3, 0.8, 5.0]))
    x_t, output = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 1)) * 3, jnp.float32)
    denoise = make_denoiser(prediction, lambda params, *_: params, output)
    plain, clipped = compiled(denoise)(x_t, point), compiled(clip_denoised(denoise))(x_t, point)
    np.testing.assert_array_equal(clipped.x0, np.clip(plain.x0, -1, 1))
    assert np.abs(plain.x0).max() > 1
    signal, std = (np.asarray(values, float)[:, None, None, None] for values in point[1:])
    eps = (np.asarray(x_t, float) - signal * np.clip(np.asarray(plain.x0, float), -1, 1)) / std
    np.testing.assert_allclose(clipped.eps, eps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clipped.score, -eps / std, rtol=1e-5, atol=1e-5)

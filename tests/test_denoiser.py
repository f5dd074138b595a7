"""Every prediction type leads to the same denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoiser import PREDICTIONS, make_denoiser
from diffusion_jax.errors import InputError
from diffusion_jax.processes.schedules import make_schedule, respace

SCHEDULE = make_schedule("linear", 100)


@pytest.mark.parametrize("prediction", PREDICTIONS)
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
        denoise = make_denoiser(SCHEDULE, prediction, lambda params, *_: params, params)
        return denoise(x_t, t)

    predicted = compiled(run)(truth[prediction], jnp.asarray(x_t, jnp.float32))
    for name, value in truth.items():
        # x0 from eps divides a float32 rounding by sqrt(alpha_bar) = 6e-3, the score by sqrt(1 -
        # alpha_bar) = 0.03.
        np.testing.assert_allclose(getattr(predicted, name), value, atol=2e-4, rtol=2e-4)


def test_the_network_is_given_params_labels_and_the_original_time():
    seen = {}

    def apply_fn(params, x_t, t, labels):
        seen.update(params=params, t=t, labels=labels)
        return x_t

    denoise = make_denoiser(
        respace(SCHEDULE, 4), "eps", apply_fn, "params", labels=jnp.array([7, 8])
    )
    denoise(jnp.zeros((2, 1, 1, 1)), jnp.array([1, 3]))
    assert seen["params"] == "params"
    np.testing.assert_array_equal(seen["labels"], [7, 8])
    np.testing.assert_array_equal(seen["t"], [33, 99])
    assert seen["t"].dtype == jnp.float32


def test_an_unknown_prediction_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown prediction 'epsilon'.*eps, x0, v"):
        make_denoiser(SCHEDULE, "epsilon", lambda params, x_t, t, labels: x_t, None)


def test_unused_forms_cost_nothing_under_jit():
    denoise = make_denoiser(SCHEDULE, "x0", lambda params, x_t, t, labels: x_t, None)
    program = jax.jit(lambda x, t: denoise(x, t).x0).lower(jnp.ones((1, 2)), jnp.array([3]))
    assert "divide" not in str(program.compile().as_text())

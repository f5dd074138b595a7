"""L_simple against the formula by hand and against its expectation for known denoisers."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.losses import (
    LOSSES,
    NoiseDraw,
    Objective,
    TrainingLoss,
    loss_function,
    simple_loss,
)
from diffusion_jax.losses.time_samplers import training_time
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays

SCHEDULE = make_schedule("linear", 100)
PROCESS = DDPM(SCHEDULE)
ALPHA_BAR = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_loss_is_the_mean_squared_error_of_each_image_in_its_own_space(compiled, rng, prediction):
    t = np.array([0, 30, 99])
    x0, eps = rng.normal(size=(2, 3, 2, 2, 3))
    expected = []
    for i in range(3):
        a, s = np.sqrt(ALPHA_BAR[t[i]]), np.sqrt(1 - ALPHA_BAR[t[i]])
        output = 0.5 * (a * x0[i] + s * eps[i]) + 0.01 * t[i]
        target = {"eps": eps[i], "x0": x0[i], "v": a * eps[i] - s * x0[i]}[prediction]
        expected.append(((target - output) ** 2).sum() / 12)

    def apply_fn(params, x_t, time, labels, dropout_keys):
        assert labels is None and dropout_keys is None
        return params * x_t + 0.01 * time[:, None, None, None]

    def loss(params, x0, eps):
        return simple_loss(
            DiffusionModel(PROCESS, prediction, apply_fn), params, x0, jnp.asarray(t), eps
        )

    value = compiled(loss)(0.5, jnp.asarray(x0, jnp.float32), jnp.asarray(eps, jnp.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32 sums of 12 terms


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_optimal_denoiser_of_gaussian_data_reaches_the_least_expected_loss(key, prediction):
    n, t, data_variance = 200_000, 40, 0.3
    a, s2 = ALPHA_BAR[t], 1 - ALPHA_BAR[t]
    # Least squares for jointly normal (target, x_t): slope = cov / var, residual = var(target) -
    # cov^2 / var.
    variance = a * data_variance + s2
    covariance, target_variance = {
        "eps": (np.sqrt(s2), 1.0),
        "x0": (np.sqrt(a) * data_variance, data_variance),
        "v": (np.sqrt(a * s2) * (1 - data_variance), a + s2 * data_variance),
    }[prediction]
    x0, eps = jax.random.normal(key, (2, n, 1)) * jnp.array([data_variance**0.5, 1.0]).reshape(
        2, 1, 1
    )

    def loss(slope):
        times = jnp.full((n,), t)
        return simple_loss(
            DiffusionModel(PROCESS, prediction, lambda p, x, *_: p * x), slope, x0, times, eps
        ).mean()

    value, slope_gradient = jax.value_and_grad(loss)(covariance / variance)
    residual = target_variance - covariance**2 / variance
    # Five standard errors: a squared normal has a relative standard deviation of sqrt(2).
    np.testing.assert_allclose(value, residual, rtol=5 * np.sqrt(2 / n))
    # d/dslope = -2 mean(residual * x_t), whose standard error is 2 sqrt(residual variance / n).
    np.testing.assert_allclose(slope_gradient, 0, atol=5 * 2 * np.sqrt(residual * variance / n))


def test_the_network_is_given_labels_time_and_dropout_keys(key):
    seen = {}

    def apply_fn(params, x_t, t, labels, dropout_keys):
        seen.update(t=t, labels=labels, dropout_keys=dropout_keys)
        return x_t

    ones = jnp.ones((2, 1, 1, 1))
    labels, t, keys = jnp.array([3, 4]), jnp.array([5, 99]), jax.random.split(key)
    simple_loss(DiffusionModel(PROCESS, "eps", apply_fn), None, ones, t, ones, labels, keys)
    np.testing.assert_array_equal(seen["labels"], [3, 4])
    np.testing.assert_array_equal(seen["t"], [5.0, 99.0])
    assert seen["t"].dtype == jnp.float32
    assert seen["dropout_keys"] is keys


def test_an_unknown_prediction_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown prediction 'noise'.*eps, x0, v"):
        DiffusionModel(PROCESS, "noise", lambda p, x, *_: x)


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_draws_each_time_equally_often_and_normal_noise(compiled, key, name):
    objective = loss_function(name, DiffusionModel(PROCESS, "eps", lambda p, x, *_: x))
    n = 20_000
    draws = compiled(lambda key: objective.draw(objective.init(None), key, (n, 2)))(key)
    counts = np.bincount(np.asarray(training_time(PROCESS, draws.u), int), minlength=100)
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts, n / 100, atol=5 * np.sqrt(n / 100))
    np.testing.assert_allclose(draws.eps.mean(0), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(draws.eps.T), np.eye(2), atol=5 * np.sqrt(2 / n))


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_draws_noise_that_is_independent_of_the_times(key, name):
    objective = loss_function(name, DiffusionModel(PROCESS, "eps", lambda p, x, *_: x))
    n = 4096
    # Images of one pixel: the i-th number of both comes from the same bits if both have the same key.
    draws = objective.draw(objective.init(None), key, (n, 1))
    # Five standard deviations, 1 / sqrt(n), of the correlation of independent pairs.
    assert abs(np.corrcoef(draws.u, draws.eps[:, 0])[0, 1]) < 5 / np.sqrt(n)


def test_the_simple_objective_is_simple_loss_at_the_times_drawn(compiled, rng):
    x0, eps = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 1)), jnp.float32)
    u = jnp.array([0.0, 0.305, 0.999])

    def network(params, x, time, labels, dropout_keys):
        return params * x + 0.01 * time[:, None, None, None]

    objective = loss_function("simple", DiffusionModel(PROCESS, "v", network))
    draws = NoiseDraw(u, eps, jnp.ones(3))
    value = compiled(objective.loss)(0.3, (), x0, None, draws, None)
    expected = simple_loss(
        DiffusionModel(PROCESS, "v", network), 0.3, x0, jnp.array([0, 30, 99]), eps
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    aux = objective.init(None)
    assert objective.update(aux, None, draws, value) == aux


def test_unknown_objectives_and_predictions_are_refused_at_once():
    with pytest.raises(InputError, match="unknown loss 'simpel'.*simple"):
        loss_function("simpel", DiffusionModel(PROCESS, "eps", lambda p, x, *_: x))
    with pytest.raises(InputError, match="unknown prediction 'noise'"):
        loss_function("simple", DiffusionModel(PROCESS, "noise", lambda p, x, *_: x))


def test_an_option_of_a_loss_has_its_parameter_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def mine(
        model: DiffusionModel,
        *,
        gamma: Annotated[float, Option(kinds.Float(0), "mine", field="mine_gamma")] = 1.0,
    ) -> Objective:
        seen.append(gamma)
        return LOSSES["simple"](model)

    monkeypatch.setitem(LOSSES, "mine", TrainingLoss(mine, "my own"))
    model = DiffusionModel(PROCESS, "eps", lambda p, x, *_: x)
    loss_function("mine", model, gamma=3.0)
    LOSSES["mine"].from_fields({"mine_gamma": 2.0}, model=model, times=None)
    assert seen == [3.0, 2.0]
    with pytest.raises(InputError, match="the loss 'mine' takes no mine_gamma"):
        loss_function("mine", model, mine_gamma=3.0)

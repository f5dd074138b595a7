"""Classifier-free guidance against its formula in eps, with one network call and no recompilation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.denoiser import complete
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import (
    classifier_free,
    classifier_guided,
    clip_denoised,
    dynamic_threshold,
)
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import ancestral

PROCESS = DDPM(make_schedule("cosine", 50))
POINT = PROCESS.at(jnp.array([3, 20, 45]))
LABELS, NO_LABEL = jnp.array([0, 1, 2]), 3
X_T = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))


def network(params, x, time, labels):
    """Says something else for each class, and with variances."""
    eps = jnp.tanh(x * (1 + 0.2 * labels[:, None, None, None])) + 0.1 * labels[:, None, None, None]
    return jnp.concatenate([eps, 0.5 * eps], axis=-1)


def denoiser(labels):
    return DiffusionModel(PROCESS, "eps", network).denoiser(None, labels)


def guided(scale, **options):
    both = denoiser(jnp.concatenate([LABELS, jnp.full_like(LABELS, NO_LABEL)]))
    return classifier_free(both, scale, **options)


WITH, WITHOUT = denoiser(LABELS)(X_T, POINT), denoiser(jnp.full_like(LABELS, NO_LABEL))(X_T, POINT)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_guided_noise_is_the_formula_and_one_and_zero_are_the_two_models(compiled, scale):
    prediction = compiled(lambda x: guided(scale)(x, POINT))(X_T)
    # Made of x0 in float32: at t = 3 the noise is 0.03 of x_t.
    eps = np.asarray(WITHOUT.eps) + scale * np.asarray(WITH.eps - WITHOUT.eps)
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-4)
    x0 = np.asarray(WITHOUT.x0) + scale * np.asarray(WITH.x0 - WITHOUT.x0)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-4, atol=1e-4)
    # Of the same output, compiled otherwise: rounding.
    np.testing.assert_allclose(prediction.fraction, np.asarray(WITH.fraction), rtol=1e-6)


def test_another_scale_or_rescale_does_not_compile_it_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, scale, rescale):
        return guided(scale, rescale=rescale)(x, POINT).x0

    results = [
        run(X_T, jnp.float32(scale), jnp.float32(r)) for scale, r in ((1, 0), (4, 0), (4, 1))
    ]
    assert len({float(jnp.sum(r)) for r in results}) == 3


def test_outside_of_the_interval_the_conditional_model_counts():
    low, _, high = np.asarray(POINT.std / POINT.signal, float)
    low, high = 1.1 * low, 0.9 * high  # Only the middle one is inside.
    x0 = guided(3.0, interval=(low, high))(X_T, POINT).x0
    everywhere = guided(3.0)(X_T, POINT).x0
    np.testing.assert_allclose(x0[1], everywhere[1], rtol=1e-6)
    for i in (0, 2):
        np.testing.assert_allclose(x0[i], WITH.x0[i], rtol=1e-5, atol=1e-5)
        assert np.abs(x0[i] - everywhere[i]).max() > 1e-3


@pytest.mark.parametrize("form", ["x0", "eps", "v"])
def test_rescaling_gives_any_form_the_spread_of_the_conditional_one(form: str):
    """Lin et al. (2024), Eq. 15-16, written for what the network predicts, by hand in NumPy."""
    with_class, without = (np.asarray(getattr(one, form), float) for one in (WITH, WITHOUT))
    plain = without + 4.0 * (with_class - without)
    factor = with_class.std((1, 2, 3)) / plain.std((1, 2, 3))
    expected = plain * (0.7 * factor + 0.3)[:, None, None, None]
    got = getattr(guided(4.0, rescale=0.7, rescale_of=form)(X_T, POINT), form)
    # From the form to x0 and back, where the noise is 0.03 of x_t or the signal 0.15.
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("limit", [clip_denoised, dynamic_threshold])
def test_a_limited_prediction_keeps_either_x_t_or_eps(limit):
    wild = lambda x_t, point: denoiser(LABELS)(3 * x_t, point)  # noqa: E731
    whole, kept = limit(wild)(X_T, POINT), limit(wild, keep_eps=True)(X_T, POINT)
    np.testing.assert_array_equal(kept.x0, whole.x0)
    np.testing.assert_array_equal(kept.eps, wild(X_T, POINT).eps)
    signal, std = (v[:, None, None, None] for v in (POINT.signal, POINT.std))
    np.testing.assert_allclose(signal * whole.x0 + std * whole.eps, X_T, atol=1e-5)
    assert np.abs(signal * kept.x0 + std * kept.eps - X_T).max() > 0.1


def test_rescaled_images_have_the_contrast_of_the_conditional_ones():
    whole = guided(6.0, rescale=1.0)(X_T, POINT).x0
    half = guided(6.0, rescale=0.5)(X_T, POINT).x0
    plain = guided(6.0)(X_T, POINT).x0
    np.testing.assert_allclose(np.std(whole, (1, 2, 3)), np.std(WITH.x0, (1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(half, (whole + plain) / 2, rtol=1e-5, atol=1e-5)


def test_a_classifiers_gradient_turns_the_prior_of_normal_data_into_their_posterior(compiled):
    # x_0 ~ N(0, 1) and y = x_0 + N(0, 0.25) observed: log p(y | x_t) is normal, and the guided denoiser must be
    # E[x_0 | x_t, y], here by conditioning the joint normal of (x_0, x_t, y) in float64.
    y = np.array([0.8, -0.3, 0.1])
    signal, std = (np.asarray(a, float) for a in (POINT.signal, POINT.std))
    total = signal**2 + std**2  # Variance of x_t.

    def prior(x_t, point):
        x0 = x_t * jnp.asarray(signal / total, jnp.float32)[:, None, None, None]
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    def log_prob(x_t, point):
        mean = x_t * (point.signal / (point.signal**2 + point.std**2))[:, None, None, None]
        variance = point.std**2 / (point.signal**2 + point.std**2) + 0.25
        error = jnp.asarray(y, jnp.float32)[:, None, None, None] - mean
        return -jnp.square(error) / (2 * variance[:, None, None, None])

    gradient = jax.grad(lambda x, point: log_prob(x, point).sum())
    guided_x0 = compiled(lambda x: classifier_guided(prior, gradient)(x, POINT).x0)(X_T)
    for i in range(3):
        cov = np.array([[total[i], signal[i]], [signal[i], 1.25]])  # Of (x_t, y).
        weights = np.linalg.solve(cov, [signal[i], 1.0])
        expected = weights[0] * np.asarray(X_T[i]) + weights[1] * y[i]
        np.testing.assert_allclose(guided_x0[i], expected, atol=2e-5)
    unguided = classifier_guided(prior, gradient, 0.0)(X_T, POINT)
    np.testing.assert_allclose(unguided.x0, prior(X_T, POINT).x0, rtol=1e-4, atol=1e-4)


def test_a_dynamic_threshold_scales_back_images_that_exceed_the_range_and_no_others(compiled, rng):
    small = rng.uniform(-0.9, 0.9, size=(4, 4, 1))
    large = 3 * rng.normal(size=(4, 4, 1))
    x0 = jnp.asarray([small, large, small], jnp.float32)

    def denoise(x_t, point):
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    limited = compiled(lambda x: dynamic_threshold(denoise, 0.75)(x, POINT))(X_T)
    np.testing.assert_allclose(limited.x0[0], small, rtol=1e-6)
    # The quantile by hand: sixteen sorted sizes lie at 0, 1/15, ..., 1; 0.75 is between the 12th and the 13th.
    sizes = np.sort(np.abs(large).ravel())
    s = sizes[11] + (0.75 * 15 - 11) * (sizes[12] - sizes[11])
    assert s > 1
    np.testing.assert_allclose(limited.x0[1], np.clip(large, -s, s) / s, rtol=1e-5)
    assert np.abs(limited.x0[1] - clip_denoised(denoise)(X_T, POINT).x0[1]).max() > 0.1


def test_a_classifier_moves_an_ancestral_step_by_its_variance_times_the_gradient():
    """As guided-diffusion moves the mean: by beta_t / sqrt(alpha_t) here, by beta_t there."""
    process = DDPM(make_schedule("linear", 1000))
    gradient = jnp.linspace(-1, 1, X_T.size).reshape(X_T.shape)
    sampler = ancestral(make_grid(process))
    keys, state = jax.random.split(jax.random.key(1), 3), sampler.init(X_T)
    denoise = DiffusionModel(process, "eps", network).denoiser(None, LABELS)
    beta = np.linspace(1e-4, 0.02, 1000)
    for step in (100, 500, 900):
        plain, guided = (
            sampler.advance(one, state, jnp.asarray(step), keys).x
            for one in (denoise, classifier_guided(denoise, lambda x, point: gradient, 10.0))
        )
        variance = beta[999 - step]
        expected = 10 * variance / np.sqrt(1 - variance) * np.asarray(gradient)
        np.testing.assert_allclose(guided - plain, expected, atol=2e-6)
        assert abs(1 / np.sqrt(1 - variance) - 1) < 0.6 * variance

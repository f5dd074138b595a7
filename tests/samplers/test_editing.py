"""Editing: against the conditional distributions of correlated normal data, and what is known stays known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import counted, flow, optimal
from slow import slow, slow_after

from diffusion_jax.data import to_model_range, to_uint8
from diffusion_jax.errors import InputError
from diffusion_jax.models.denoiser import complete
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
    image_keys,
    inpaint,
    inpaint_nfe,
    interpolate,
    pndm,
    project_blocks,
    project_gray,
    project_nothing,
    project_pixels,
    sample_loop,
    slerp,
)
from diffusion_jax.samplers.editing import LUMA, renoise

PROCESS = DDPM(make_schedule("cosine", 400))
MANY = 4000


def correlated(covariance):
    """E[x_0 | x_t] for images whose pixels and channels, in order, are N(0, covariance)."""

    def denoise(x_t, point):
        cov = jnp.asarray(covariance, jnp.float32)
        b, n = len(x_t), len(cov)
        signal, std = (a[:, None, None] for a in (point.signal, point.std))
        of_x_t = jnp.square(signal) * cov[None] + jnp.square(std) * jnp.eye(n)[None]
        solved = jnp.linalg.solve(of_x_t, x_t.reshape(b, n, 1))
        x0 = (signal * jnp.einsum("ij,bjk->bik", cov, solved)).reshape(x_t.shape)
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    return denoise


def conditional(covariance, known, value):
    """Mean and covariance of N(0, covariance) where known @ x = value, by conditioning the joint normal."""
    known = np.atleast_2d(known)
    gain = covariance @ known.T @ np.linalg.inv(known @ covariance @ known.T)
    return gain @ np.atleast_1d(value), covariance - gain @ known @ covariance


def moments(images):
    flat = np.asarray(images, float).reshape(len(images), -1)
    return flat.mean(0), np.cov(flat.T)


TWO = np.array([[0.25, 0.2], [0.2, 0.25]])  # Two pixels, correlation 0.8.
RGB = 0.25 * np.array([[1, 0.6, 0.2], [0.6, 1, 0.5], [0.2, 0.5, 1]])
FOUR = 0.25 * (0.4 * np.eye(4) + 0.6)  # A block of two by two pixels.
CASES = {
    "pixels": (TWO, (1, 2, 1), project_pixels(np.array([[True, False]])), [[1, 0]]),
    "gray": (RGB, (1, 1, 3), project_gray(), [LUMA]),
    "blocks": (FOUR, (2, 2, 1), project_blocks(2), [[0.25] * 4]),
}


@pytest.mark.parametrize("name", slow_after(1, CASES))
def test_resampled_edits_have_the_distribution_given_what_is_known(name):
    covariance, shape, constraint, known = CASES[name]
    x0 = jnp.broadcast_to(
        jnp.linspace(0.3, 0.6, int(np.prod(shape))).reshape(shape), (MANY, *shape)
    )
    value = np.asarray(known) @ np.linspace(0.3, 0.6, int(np.prod(shape)))
    sampler = dpmpp_2m_sde(
        make_grid(PROCESS, 50, "logsnr")
    )  # Ancestral has too small a variance in 50 steps.

    @jax.jit
    def draw(keys):
        return inpaint(
            correlated(covariance), sampler, keys, x0, constraint, resamplings=8, jump=5
        ).images

    images = draw(image_keys(0, jnp.arange(MANY)))
    flat = np.asarray(images, float).reshape(MANY, -1)
    # The last step writes it: the rounding of a sum of three.
    np.testing.assert_allclose(flat @ np.transpose(known), value[None].repeat(MANY, 0), atol=1e-6)
    mean, cov = moments(images)
    expected_mean, expected_cov = conditional(covariance, known, value)
    # Four standard errors of a mean (0.5 / sqrt(4000)), and what is left of the bias of replacement: without
    # resampling it is 0.04 to 0.1 here.
    np.testing.assert_allclose(mean, expected_mean, atol=0.035)
    np.testing.assert_allclose(cov, expected_cov, atol=0.02)


@pytest.mark.slow
def test_resampling_brings_the_rest_nearer_to_what_is_known():
    covariance, shape, constraint, known = CASES["pixels"]
    x0 = jnp.full((MANY, *shape), 0.8)
    sampler = ancestral(make_grid(PROCESS, 50), variance="fixed_small")
    mean, _ = conditional(covariance, known, 0.8)

    def error(**options):
        images = jax.jit(
            lambda keys: (
                inpaint(correlated(covariance), sampler, keys, x0, constraint, **options).images
            )
        )(image_keys(0, jnp.arange(MANY)))
        return abs(moments(images)[0][1] - mean[1])

    assert error(resamplings=8, jump=5) < 0.5 * error()


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 9), (18, 19), (15, 20)])
def test_noise_that_is_put_back_has_the_variance_of_the_chain(first, last):
    """Also at the end of jsd, whose signal is far below what a `Point` can say."""
    grid = make_grid(DDPM(make_schedule("jsd", 1000)), 20, "logsnr")
    x = jnp.full((MANY, 2, 2, 1), 0.5)
    points = jnp.int32(first), jnp.int32(last)
    noised = np.asarray(renoise(grid, x, *points, image_keys(0, jnp.arange(MANY))), float)
    log_kept = 2 * (grid.log_signal[first] - grid.log_signal[last])  # Of the squared signal.
    variance = grid.std[first] ** 2 - np.exp(log_kept) * grid.std[last] ** 2
    # Five standard errors of 16,000 numbers.
    assert abs(noised.var() / variance - 1) < 5 * np.sqrt(2 / noised.size)
    mean_error = abs(noised.mean() - 0.5 * np.exp(log_kept / 2))
    assert mean_error < 5 * np.sqrt(variance / noised.size)


def test_known_pixels_are_kept_to_the_last_level(rng):
    pixels = jnp.asarray(rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8))
    known = rng.random((4, 4)) < 0.5
    for sampler in (
        ancestral(make_grid(PROCESS, 5), variance="fixed_small"),
        dpmpp_2m(make_grid(PROCESS, 5)),
    ):
        for resamplings in (1, 2):
            options = {"resamplings": resamplings, "jump": 2}
            draw = jax.jit(
                functools.partial(inpaint, optimal, sampler, **options), static_argnums=2
            )
            x0, keys = to_model_range(pixels), image_keys(0, jnp.arange(3))
            images = draw(keys, x0, project_pixels(known)).images
            np.testing.assert_array_equal(to_uint8(images)[:, known], pixels[:, known])
            assert (to_uint8(images)[:, ~known] != pixels[:, ~known]).any()


def test_image_to_image_follows_the_flow_from_the_noised_image_and_a_late_start_keeps_it():
    grid = make_grid(PROCESS)
    sampler, keys = ddim(grid), image_keys(4, jnp.arange(3))
    x0 = jnp.linspace(-0.5, 0.9, 12).reshape(3, 2, 2, 1)

    @jax.jit
    def draw(start_x0):
        return [
            inpaint(optimal, sampler, keys, start_x0, project_nothing(), start=start).images
            for start in (200, 395)
        ]

    halfway, late = draw(x0)
    noise = sample_loop(
        optimal, sampler, keys, (2, 2, 1), stop=0
    ).images  # The prior's: x_T itself.
    x_t = grid.signal[200] * np.asarray(x0, float) + grid.std[200] * np.asarray(noise, float)
    # DDIM's own error in 200 steps.
    np.testing.assert_allclose(halfway, flow(grid, x_t, 200, 400), atol=5e-3)
    assert np.abs(late - x0).max() < 0.05 < np.abs(halfway - x0).max()


def test_an_edit_of_the_whole_chain_that_knows_nothing_is_a_sample():
    sampler = ancestral(make_grid(PROCESS, 6), variance="fixed_small")
    keys = image_keys(1, jnp.arange(2))
    edited = inpaint(optimal, sampler, keys, jnp.zeros((2, 2, 2, 1)), project_nothing()).images
    drawn = sample_loop(optimal, sampler, keys, (2, 2, 1)).images
    np.testing.assert_allclose(edited, drawn, atol=1e-6)  # Compiled once, and eagerly.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 6}, "start is 6; it must be from 0 to 5"),
        ({"resamplings": 0}, "resamplings is 0; it must be 1 or more"),
        ({"jump": 0}, "jump is 0; it must be 1 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    sampler = ddim(make_grid(PROCESS, 6))
    with pytest.raises(InputError, match=message):
        inpaint(
            *(optimal, sampler, image_keys(0, jnp.arange(1)), jnp.zeros((1, 2, 2, 1))),
            project_nothing(),
            **options,
        )


@pytest.mark.parametrize("make", [ancestral, slow(heun), slow(pndm)])
@pytest.mark.parametrize(
    "options",
    [{}, {"start": 3}, {"resamplings": 3, "jump": 3}, {"start": 1, "resamplings": 2, "jump": 5}],
)
def test_what_an_edit_costs_is_what_the_network_is_asked(make, options):
    grid = make_grid(PROCESS, 8, "leading")
    sampler = ancestral(grid, variance="fixed_small") if make is ancestral else make(grid, PROCESS)
    denoise, calls = counted(optimal)
    keys, x0 = image_keys(0, jnp.arange(2)), jnp.zeros((2, 2, 2, 1))
    edited = jax.jit(lambda: inpaint(denoise, sampler, keys, x0, project_nothing(), **options))()
    jax.effects_barrier()
    assert len(calls) == inpaint_nfe(sampler, **options) == int(edited.stats.evaluations[0])


# ---- interpolation -----------------------------------------------------------------------------------


def test_interpolations_of_normal_data_are_straight_and_end_at_the_images_themselves():
    sampler, keys = ddim(make_grid(PROCESS, 20)), image_keys(0, jnp.zeros(5, jnp.int32))
    x0, other = jnp.full((5, 2, 2, 1), -0.6), jnp.full((5, 2, 2, 1), 0.8)
    fraction = jnp.linspace(0.0, 1.0, 5)

    @jax.jit
    def draw(x0, other, point):
        return interpolate(optimal, sampler, keys, x0, other, fraction, point).images

    for point in (3, 18):
        images = draw(x0, other, point)
        ends = [np.asarray(draw(end, end, point)[0]) for end in (x0, other)]
        np.testing.assert_allclose(images[0], ends[0], atol=1e-6)
        np.testing.assert_allclose(images[4], ends[1], atol=1e-6)
        # The flow of normal data is linear, and all fractions share the noise.
        line = ends[0] + np.linspace(0, 1, 5)[:, None, None, None] * (ends[1] - ends[0])
        np.testing.assert_allclose(images, line, atol=1e-5)
    assert abs(float(ends[0].mean()) + 0.6) < 0.15  # Late in the chain, an end is the image.


def test_the_arc_keeps_its_length_and_is_walked_evenly(compiled, rng):
    x, other = (jnp.asarray(rng.normal(size=(1, 8, 8, 1)), jnp.float32) for _ in range(2))
    other = other * (jnp.linalg.norm(x) / jnp.linalg.norm(other))
    fraction = jnp.linspace(0.0, 1.0, 6)
    arc = compiled(slerp)(x.repeat(6, 0), other.repeat(6, 0), fraction)
    np.testing.assert_allclose(arc[0], x[0], atol=1e-6)
    np.testing.assert_allclose(arc[5], other[0], atol=1e-6)
    flat = np.asarray(arc, float).reshape(6, -1)
    lengths = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    steps = np.arccos(np.sum(flat[1:] * flat[:-1], 1) / lengths[0] ** 2)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-4)
    np.testing.assert_allclose(slerp(x, x, jnp.array([0.3])), x, atol=1e-6)

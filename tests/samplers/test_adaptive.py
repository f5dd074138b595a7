"""The adaptive sampler: the exact flow, its account of itself, its frames, and the way there and back."""

from typing import Any

import jax
import jax.numpy as jnp
import mixture_data
import numpy as np
import pytest
from samplers import normal_data
from slow import slow_after, slow_but

from diffusion_jax.parallel.sharding import make_mesh, over_batch
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import (
    SampleResult,
    first_noise,
    image_keys,
    inpaint,
    ode_adaptive,
    ode_decode,
    ode_encode,
    project_nothing,
    sample_loop,
)

DDPM_LINEAR = DDPM(make_schedule("linear", 1000))
PROCESSES = {"ddpm": DDPM_LINEAR, "vp": VP(), "subvp": SubVP(), "ve": VE()}
KEYS = image_keys(0, jnp.arange(8))


def run(
    sampler: Any, keys: Any = KEYS, denoise: Any = mixture_data.optimal, **options: Any
) -> SampleResult:
    return jax.jit(lambda keys: sample_loop(denoise, sampler, keys, (2,), **options))(keys)


@pytest.mark.parametrize("name", slow_but(["vp"], PROCESSES))
def test_samples_are_the_denoised_ends_of_the_exact_flow_of_every_process(name):
    process = PROCESSES[name]
    grid = make_grid(process, 2)
    result = run(ode_adaptive(grid, process))
    noise = np.asarray(grid.prior_std * first_noise(KEYS, (2,)), np.float64)
    end = mixture_data.flow(grid, noise, 0, 1)
    signal, std = np.exp(grid.log_signal[1]), grid.std[1]
    x0, _ = mixture_data.expected(end, np.full((8, 1), signal), np.full((8, 1), std))
    # A tolerance of 1e-5 a step, some 20 steps, grown where the flow parts components.
    np.testing.assert_allclose(result.images, x0, atol=2e-4)
    assert result.stats.finished.all()
    np.testing.assert_allclose(result.stats.reached, grid.time[2])


def test_evaluations_are_counted_image_by_image_and_with_frames():
    process, grid = PROCESSES["vp"], make_grid(PROCESSES["vp"], 5, "logsnr")
    denoise, calls = normal_data.counted(normal_data.optimal)
    result = run(ode_adaptive(grid, process), KEYS[:1], denoise, num_frames=6)
    jax.effects_barrier()
    # Alone in its batch, an image is evaluated as often as it needs.
    assert sum(calls) == int(result.stats.evaluations[0])
    assert result.frames_x_t is not None and result.frames_x0 is not None
    x_t = np.asarray(result.frames_x_t, np.float64)
    for i in range(4):
        expected = normal_data.flow(grid, x_t[i], i, i + 1)
        np.testing.assert_allclose(x_t[i + 1], expected, atol=1e-4)
    np.testing.assert_array_equal(result.frames_x0[-1], result.images)


def test_an_image_depends_neither_on_its_batch_nor_on_the_devices():
    process = PROCESSES["vp"]
    sampler = ode_adaptive(make_grid(process, 2), process)
    whole, few = run(sampler), run(sampler, KEYS[5:6])
    assert len(set(np.asarray(whole.stats.evaluations).tolist())) > 2
    np.testing.assert_array_equal(whole.stats.evaluations[5:6], few.stats.evaluations)
    # Vectorized otherwise, sums may be rounded otherwise.
    np.testing.assert_allclose(whole.images[5:6], few.images, atol=1e-5)
    mesh = make_mesh(2)

    def draw(_: tuple, keys: jax.Array) -> tuple:
        result = sample_loop(mixture_data.optimal, sampler, keys, (2,))
        return result.images, result.stats

    images, stats = jax.jit(over_batch(draw, mesh, (0, 0)))((), KEYS)
    np.testing.assert_array_equal(stats.evaluations, whole.stats.evaluations)
    np.testing.assert_allclose(images, whole.images, atol=1e-5)


# Steps that some of the images need between two points, and others do not.
LIMIT = 7


def test_where_the_limit_of_steps_stops_an_image_it_is_no_image_and_the_time_is_told():
    process, grid = PROCESSES["vp"], make_grid(PROCESSES["vp"], 4, "logsnr")
    evaluations = np.asarray(run(ode_adaptive(grid, process)).stats.evaluations)
    result = run(ode_adaptive(grid, process, max_steps=LIMIT))
    finished = np.asarray(result.stats.finished)
    assert finished.any() and not finished.all()
    np.testing.assert_array_equal(np.isnan(result.images).all(-1), ~finished)
    np.testing.assert_array_equal(np.isfinite(result.images).all(-1), finished)
    reached = np.asarray(result.stats.reached)
    np.testing.assert_array_equal(reached[finished], 0)
    assert ((reached > 0) & (reached < 999))[~finished].all()
    # Nothing is evaluated for them after that, and the others are as without a limit.
    assert (np.asarray(result.stats.evaluations) < evaluations)[~finished].all()
    np.testing.assert_array_equal(
        np.asarray(result.stats.evaluations)[finished], evaluations[finished]
    )


def test_an_error_smaller_by_the_tolerance_costs_more():
    process, grid = PROCESSES["vp"], make_grid(PROCESSES["vp"], 2)
    exact = mixture_data.flow(grid, np.asarray(first_noise(KEYS, (2,))), 0, 1)

    @jax.jit
    def end(tolerance):
        sampler = ode_adaptive(grid, process, rtol=tolerance, atol=tolerance)
        result = sample_loop(mixture_data.optimal, sampler, KEYS, (2,), stop=1)
        return result.images, result.stats

    results = [end(tolerance) for tolerance in (1e-2, 1e-3, 1e-4)]
    errors = [np.abs(x - exact).max() for x, _ in results]
    costs = [float(stats.evaluations.mean()) for _, stats in results]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and costs == sorted(costs), (errors, costs)


@pytest.mark.parametrize("name", slow_after(1, ["ddpm", "ve"]))
def test_images_are_encoded_and_decoded_without_loss(name, rng):
    process = PROCESSES[name]
    grid = make_grid(process, 2)
    x0 = jnp.asarray(mixture_data.draw(rng, 8), jnp.float32)

    @jax.jit
    def there_and_back(x0):
        latent = ode_encode(mixture_data.optimal, grid, process, x0, rtol=1e-6, atol=1e-6)
        return latent, ode_decode(
            mixture_data.optimal, grid, process, latent.y, rtol=1e-6, atol=1e-6
        )

    latent, back = there_and_back(x0)
    # Some tens of steps of 1e-6 each way, and float32; of VE, x_T is 100 times as large as x_0.
    np.testing.assert_allclose(back.y, x0, atol=1e-4)
    np.testing.assert_allclose(latent.stats.reached, grid.time[0])
    np.testing.assert_allclose(back.stats.reached, grid.time[1], rtol=1e-6)
    exact = mixture_data.flow(grid, np.asarray(x0), 1, 0)
    np.testing.assert_allclose(latent.y / grid.prior_std, exact / grid.prior_std, atol=1e-4)


def test_an_edit_starts_at_a_point_of_the_grid():
    grid = make_grid(DDPM_LINEAR, 4, "logsnr")
    sampler = ode_adaptive(grid, DDPM_LINEAR)
    x0 = jnp.full((8, 1, 1, 2), 0.5)
    edited = jax.jit(
        lambda: inpaint(mixture_data.optimal, sampler, KEYS, x0, project_nothing(), start=3).images
    )()
    noised = np.exp(grid.log_signal[3]) * x0 + grid.std[3] * first_noise(KEYS, (1, 1, 2))
    expected = mixture_data.optimal(noised, grid.at(jnp.full(8, 3))).x0
    np.testing.assert_allclose(edited, expected, atol=1e-5)
    assert sampler.nfe is None

"""DDIM and its inversion: values by hand, ancestral sampling at eta = 1, order of convergence, encode and decode."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import MEAN, STD, counted, flow, optimal, slopes
from slow import slow_after

from diffusion_jax.errors import InputError
from diffusion_jax.keys import image_normal
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.reverse import p_posterior
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    ancestral,
    ddim,
    encode,
    encoding_nfe,
    first_noise,
    image_keys,
    sample_loop,
)
from diffusion_jax.samplers.loop import step_keys

PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (2, 2, 1)


def bent(params, x_t, t, labels):
    """A network that is not linear and depends on the time."""
    return jnp.sin(1.5 * x_t) + 0.001 * t[:, None, None, None]


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_two_steps_are_equation_12_of_the_paper(eta):
    times = (100, 700)
    denoise = DiffusionModel(PROCESS, "eps", bent).denoiser(None)
    sampler = ddim(make_grid(PROCESS, None, times), eta=eta)
    keys = image_keys(3, jnp.arange(2))
    result = sample_loop(denoise, sampler, keys, SHAPE, num_frames=3)

    betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    alpha = np.append(np.cumprod(1 - betas)[[700, 100]], 1.0)  # The paper's alpha is alpha_bar.
    x, path = np.asarray(first_noise(keys, SHAPE), np.float64), []
    for a, a_prev, t in zip(alpha[:-1], alpha[1:], (700.0, 100.0), strict=True):
        eps = np.sin(1.5 * x) + 0.001 * t
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
        predicted = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        z = np.asarray(image_normal(step_keys(keys, jnp.float32(t)), SHAPE))
        x = np.sqrt(a_prev) * predicted + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * z
        path.append((x, predicted))
    assert result.frames_x_t is not None and result.frames_x0 is not None
    # Float32 against float64; the first prediction is divided by sqrt(alpha) = 0.08.
    np.testing.assert_allclose(result.frames_x_t[1], path[0][0], atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(result.frames_x0[0], path[0][1], atol=2e-5, rtol=2e-6)
    np.testing.assert_allclose(result.images, path[1][0], atol=5e-6, rtol=5e-6)
    np.testing.assert_array_equal(result.images, result.frames_x0[1])  # It ends at x0_hat.


@pytest.mark.parametrize("schedule", ["linear", "cosine", "jsd"])
def test_at_eta_1_each_step_of_the_full_chain_is_ancestral_with_fixed_small(schedule):
    process = DDPM(make_schedule(schedule, 200))
    grid = make_grid(process)
    steps = jnp.arange(200)
    x_t, x0 = jax.random.normal(jax.random.key(0), (2, 200, *SHAPE))
    sampler, keys = ddim(grid, eta=1.0), image_keys(0, steps)

    def step(x_t, x0, i, key):
        denoise = DiffusionModel(process, "x0", lambda params, x, t, labels: x0[None]).denoiser(
            None
        )
        return sampler.advance(denoise, sampler.init(x_t[None]), i, key[None]).x[0]

    moved = jax.vmap(step)(x_t, x0, steps, keys)
    p = p_posterior(grid, x0, x_t, step=steps, variance="fixed_small")
    expected = p.mean + jnp.sqrt(p.variance) * image_normal(keys, SHAPE)
    # eps_hat is a quotient by std, 0.01 in the last steps: its rounding is 1e-7 / std, times a std below that.
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_at_eta_1_the_images_have_the_distribution_that_ancestral_sampling_reaches():
    """With noise shared step by step the images are even the same ones."""
    grid, keys = make_grid(PROCESS, 50), image_keys(0, jnp.arange(500))
    images = [
        jax.jit(lambda k, s=sampler: sample_loop(optimal, s, k, SHAPE).images)(keys)
        for sampler in (ddim(grid, eta=1.0), ancestral(grid, variance="fixed_small"))
    ]
    np.testing.assert_allclose(*images, atol=2e-5)  # Fifty steps of rounding.


@pytest.mark.parametrize("eta", slow_after(1, [0.0, 0.5, 1.0]))
def test_normal_data_are_reached_with_their_mean_and_variance(eta):
    sampler = ddim(make_grid(PROCESS, 200), eta=eta)
    draw = jax.jit(lambda k: sample_loop(optimal, sampler, k, SHAPE).images)
    images = np.asarray(draw(image_keys(0, jnp.arange(5000))), np.float64)
    n = images.size
    # Five standard errors, and the error of 200 steps.
    assert images.mean() == pytest.approx(MEAN, abs=5 * STD / np.sqrt(n) + 0.005)
    assert images.std() == pytest.approx(STD, rel=5 / np.sqrt(2 * n) + 0.02)


def test_the_deterministic_sampler_solves_the_probability_flow_ode_with_order_1():
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    keys, errors = image_keys(0, jnp.arange(5)), []
    for num_steps in (40, 80, 160):
        grid = make_grid(PROCESS, num_steps, "logsnr")
        # Up to the first timestep: the step to the data has an error of its own, the same for every number.
        last = num_steps - 1
        run = jax.jit(
            lambda x, g=grid, n=last: (
                sample_loop(optimal, ddim(g), keys, SHAPE, x_init=x, stop=n).images
            )
        )
        errors.append(float(np.abs(run(jnp.float32(x_T)) - flow(grid, x_T, 0, last)).max()))
    np.testing.assert_allclose(slopes(errors), 1, atol=0.2)
    assert errors[-1] < 0.02


def test_without_eta_an_image_is_a_function_of_its_first_noise_alone():
    denoise = DiffusionModel(PROCESS, "eps", bent).denoiser(None)
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))

    @jax.jit
    def draw(seed, eta):
        sampler = ddim(make_grid(PROCESS, 7), eta=eta)
        return sample_loop(
            clip_denoised(denoise), sampler, image_keys(seed, jnp.arange(2)), SHAPE, x_init=x
        ).images

    np.testing.assert_array_equal(draw(0, 0.0), draw(1, 0.0))
    assert np.abs(draw(0, 0.5) - draw(1, 0.5)).max() > 0.01
    fixed = sample_loop(
        clip_denoised(denoise),
        ddim(make_grid(PROCESS, 7)),
        image_keys(2, jnp.arange(2)),
        SHAPE,
        x_init=x,
    )
    # The same steps in another program, without the noise: rounding.
    np.testing.assert_allclose(draw(0, 0.0), fixed.images, atol=1e-5)


def test_another_eta_does_not_recompile():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(seed, eta):
        sampler = ddim(make_grid(PROCESS, 5), eta=eta)
        return sample_loop(optimal, sampler, image_keys(seed, jnp.arange(2)), SHAPE).images

    drawn = [draw(0, jnp.float32(eta)) for eta in (0, 0.3, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01 < np.abs(drawn[1] - drawn[2]).max()


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_an_eta_outside_its_range_is_one_clear_line(eta):
    with pytest.raises(InputError, match=f"eta is {eta}; it must be from 0 to 1"):
        ddim(make_grid(PROCESS, 5), eta=eta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", slow_after(1, [20, 2, 1]))
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_jsd_whose_last_step_erases_the_image_is_sampled_without_nan(prediction, num_steps, eta):
    process = DDPM(make_schedule("jsd", 20))
    denoise = DiffusionModel(process, prediction, lambda p, x, t, labels: 0.5 * x).denoiser(None)
    sampler = ddim(make_grid(process, num_steps), eta=eta)
    images = sample_loop(
        clip_denoised(denoise), sampler, image_keys(0, jnp.arange(2)), SHAPE
    ).images
    assert np.isfinite(images).all() and np.abs(images).max() <= 1


def test_image_i_does_not_depend_on_its_batch():
    sampler = ddim(make_grid(PROCESS, 9), eta=0.5)
    denoise = clip_denoised(DiffusionModel(PROCESS, "eps", bent).denoiser(None))
    draw = jax.jit(lambda i: sample_loop(denoise, sampler, image_keys(5, i), SHAPE).images)
    whole = draw(jnp.arange(6))
    np.testing.assert_allclose(draw(jnp.array([4, 1])), whole[jnp.array([4, 1])], atol=1e-5)


# ---- inversion ---------------------------------------------------------------------------------------


def images_of(n: int) -> jax.Array:
    return MEAN + STD * jax.random.normal(jax.random.key(4), (n, *SHAPE))


@jax.jit
def roundtrip_errors(x0: jax.Array) -> dict[tuple[int, int], jax.Array]:
    """Largest error of encoding and decoding again, by the numbers of steps and of iterations."""
    errors = {}
    for num_steps in (25, 50, 100):
        grid = make_grid(PROCESS, num_steps, "logsnr")
        for iterations in (0, 1, 5):
            latent = encode(optimal, grid, x0, iterations=iterations).y
            keys = image_keys(0, jnp.arange(len(x0)))
            decoded = sample_loop(optimal, ddim(grid), keys, SHAPE, x_init=latent).images
            errors[num_steps, iterations] = jnp.abs(decoded - x0).max()
    return errors


def test_decoding_a_code_gives_the_image_again_the_better_the_more_steps_or_iterations():
    errors = jax.tree.map(float, roundtrip_errors(images_of(6)))
    plain = [errors[n, 0] for n in (25, 50, 100)]
    np.testing.assert_allclose(slopes(plain), 1, atol=0.3)  # An explicit step's order.
    assert plain[-1] < 0.06
    for n in (25, 50, 100):
        assert errors[n, 5] < errors[n, 1] < errors[n, 0]
    assert errors[100, 5] < 1e-4


def test_the_code_of_normal_data_is_where_the_ode_leads_backwards():
    x0, errors = images_of(6), []
    for num_steps in (50, 100, 200):
        grid = make_grid(PROCESS, num_steps, "logsnr")
        exact = flow(grid, np.asarray(x0), num_steps, 0)
        code = jax.jit(lambda x, g=grid: encode(optimal, g, x).y)(x0)
        errors.append(float(np.abs(code - exact).max()))
    # Of order 1, down to the error of the step from the data, which has one size always.
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2] and errors[2] < 0.1


@pytest.mark.parametrize("iterations", [0, 3])
def test_its_evaluations_are_as_many_as_stated(iterations):
    denoise, calls = counted(optimal)
    grid = make_grid(PROCESS, 6)
    encode(denoise, grid, images_of(2), iterations=iterations).y.block_until_ready()
    jax.effects_barrier()
    assert len(calls) == encoding_nfe(grid, iterations) == 6 * (iterations + 1)


@pytest.mark.parametrize("clip", [False, True])
def test_an_encoding_of_images_is_inverted_with_and_without_clipping(clip):
    """Pixels at the limits of the range, where a clipped prediction has no slope, come back too."""
    x0 = jnp.clip(images_of(8) * 1.5, -1, 1).at[0].set(1.0).at[1].set(-1.0)
    denoise = clip_denoised(optimal) if clip else optimal
    grid = make_grid(PROCESS, 100, "logsnr")

    @jax.jit
    def again(x0):
        latent = encode(denoise, grid, x0, iterations=4).y
        keys = image_keys(0, jnp.arange(8))
        return sample_loop(denoise, ddim(grid), keys, SHAPE, x_init=latent).images

    np.testing.assert_allclose(again(x0), x0, atol=2e-3)


def test_fewer_than_no_iterations_are_one_clear_line():
    with pytest.raises(InputError, match="iterations is -1; it must be 0 or more"):
        encode(optimal, make_grid(PROCESS, 3), images_of(1), iterations=-1)


@pytest.mark.parametrize("clip", [False, True])
def test_images_are_encoded_without_nan_where_jsd_erases_them(clip):
    process = DDPM(make_schedule("jsd", 20))
    denoise = clip_denoised(optimal) if clip else optimal
    assert np.isfinite(encode(denoise, make_grid(process), images_of(2), iterations=2).y).all()

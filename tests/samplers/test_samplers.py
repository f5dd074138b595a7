"""Ancestral sampling on data whose optimal denoiser is known, and what image i depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.errors import InputError
from diffusion_jax.keys import stream
from diffusion_jax.processes.schedules import Schedule, make_schedule, respace
from diffusion_jax.samplers import SAMPLERS, SampleResult, ancestral, image_keys, sample_loop

MEAN = np.array([0.3, -0.5])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.25]])


def optimal_slope(alpha_bar: np.ndarray) -> np.ndarray:
    """Cov(eps, x_t) Cov(x_t)^-1: E[eps | x_t] is it times (x_t - sqrt(alpha_bar) mean)."""
    a = alpha_bar[:, None, None]
    return np.sqrt(1 - a) * np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(2))


def optimal_eps(params, x_t, t, labels):
    """The optimal eps for normal data, read from the full chain's tables at the float time."""
    slope, mean = (table[t.astype(int)] for table in params)
    centred = (x_t - mean[:, None, None, :])[:, 0, 0, None, :]
    return jnp.sum(slope * centred, axis=-1)[:, None, None, :]


def exact_chain(alpha_bar: np.ndarray, variance: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance that the discrete chain itself reaches, each step being affine in x."""
    mean, covariance = np.zeros(2), np.eye(2)
    for t in range(len(alpha_bar) - 1, -1, -1):
        a, a_prev = alpha_bar[t], alpha_bar[t - 1] if t else 1.0
        beta = 1 - a / a_prev
        # x0_hat = m + gain (x - sqrt(a) m), by conditioning the joint normal of (x0, x_t).
        gain = np.sqrt(a) * COVARIANCE @ np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(2))
        from_x0, from_xt = (
            np.sqrt(a_prev) * beta / (1 - a),
            np.sqrt(1 - beta) * (1 - a_prev) / (1 - a),
        )
        linear = from_x0 * gain + from_xt * np.eye(2)
        mean = linear @ mean + from_x0 * (MEAN - np.sqrt(a) * gain @ MEAN)
        added = {"fixed_large": beta, "fixed_small": beta * (1 - a_prev) / (1 - a)}[variance]
        covariance = linear @ covariance @ linear.T + (added if t else 0.0) * np.eye(2)
    return mean, covariance


def draw(full: Schedule, schedule: Schedule, keys: jax.Array, variance: str) -> np.ndarray:
    alpha_bar = np.cumprod(1 - full.betas.astype(float))
    tables = optimal_slope(alpha_bar), np.sqrt(alpha_bar)[:, None] * MEAN
    tables = jax.tree.map(lambda table: jnp.asarray(table, jnp.float32), tables)
    denoise = make_denoiser(schedule, "eps", optimal_eps, tables)
    sampler = ancestral(schedule, variance=variance, clip=False)
    run = jax.jit(lambda keys: sample_loop(denoise, sampler, keys, (1, 1, 2)).images)
    return np.asarray(run(keys), np.float64)[:, 0, 0, :]


@pytest.mark.parametrize(
    ("num_timesteps", "num_steps", "variance", "discretisation"),
    [
        (1000, 1000, "fixed_small", 0.005),
        (1000, 50, "fixed_small", 0.06),
        (1000, 50, "fixed_large", 0.06),
        (8, 8, "fixed_small", 0.3),
        (8, 8, "fixed_large", 0.3),
        (1, 1, "fixed_large", 1.0),
    ],
)
def test_gaussian_data_are_sampled_with_their_mean_and_covariance(
    num_timesteps, num_steps, variance, discretisation
):
    n = 4_000 if num_steps == 1000 else 20_000
    full = make_schedule("cosine", num_timesteps)
    samples = draw(full, respace(full, num_steps), image_keys(0, jnp.arange(n)), variance)

    kept = np.rint(np.linspace(0, num_timesteps - 1, num_steps)).astype(int)
    betas = full.betas.astype(float)
    mean, covariance = exact_chain(np.cumprod(1 - betas)[kept], variance)
    # Five standard errors of a sample mean and of a sample covariance of normal data.
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(
        np.cov(samples.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / n)
    )
    # What is left between the chain and the data is due to its finite number of steps, and falls
    # with it.
    np.testing.assert_allclose(mean, MEAN, atol=discretisation)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=discretisation)


def convolution(params, x_t, t, labels):
    """A small network that mixes pixels and channels of an image."""
    x = jax.lax.conv_general_dilated(
        x_t, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x + 0.01 * t[:, None, None, None])


SCHEDULE = make_schedule("linear", 30)
SAMPLER = ancestral(SCHEDULE)
SHAPE = (4, 4, 2)


def denoiser(schedule: Schedule = SCHEDULE):
    kernel = jax.random.normal(jax.random.key(9), (3, 3, 2, 2)) * 0.5
    return make_denoiser(schedule, "eps", convolution, kernel)


@jax.jit
def draw_images(keys: jax.Array) -> jax.Array:
    return sample_loop(denoiser(), SAMPLER, keys, SHAPE).images


@jax.jit
def draw_frames(keys: jax.Array) -> SampleResult:
    return sample_loop(denoiser(), SAMPLER, keys, SHAPE, num_frames=4)


def sample(seed: int, indices: list[int]) -> np.ndarray:
    return np.asarray(draw_images(image_keys(seed, jnp.array(indices))))


def test_image_i_is_the_same_in_any_batch():
    reference = sample(5, list(range(8)))
    # Bit-identical at equal batch shape, whatever the neighbours and the place in the batch.
    shuffled = sample(5, [6, 11, 0, 3, 12, 1, 99, 7])
    np.testing.assert_array_equal(shuffled[[2, 3, 5]], reference[[0, 3, 1]])
    # Within float rounding, far below one pixel level of 1/127.5, at other shapes.
    for indices in ([3], [2, 3, 4]):
        np.testing.assert_allclose(sample(5, indices), reference[indices], atol=1e-4)
    # And another image for another index or seed.
    others = np.concatenate([sample(6, list(range(8))), reference[1:]])
    assert np.abs(others - reference[:1]).mean(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("num_devices", [2, 8])
def test_image_i_is_the_same_on_any_number_of_devices(num_devices):
    mesh = jax.make_mesh(
        (num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    keys = image_keys(5, jnp.arange(16))
    on_one = draw_frames(keys)
    program = draw_frames.lower(jax.device_put(keys, sharding)).compile()
    on_many = program(jax.device_put(keys, sharding))
    assert on_many.images.sharding.is_equivalent_to(sharding, 4)
    frames = NamedSharding(mesh, PartitionSpec(None, "data"))
    assert on_many.frames_x_t.sharding.is_equivalent_to(frames, 5)
    for collective in ("all-gather", "all-reduce", "collective-permute", "all-to-all"):
        assert collective not in str(program.as_text())
    for one, many in zip(on_one, on_many, strict=True):
        np.testing.assert_allclose(many, one, atol=1e-4)


def test_eager_and_compiled_samples_agree():
    keys = image_keys(5, jnp.arange(2))
    schedule = respace(SCHEDULE, 3)
    loop = lambda keys: sample_loop(denoiser(schedule), ancestral(schedule), keys, SHAPE).images  # noqa: E731
    np.testing.assert_allclose(jax.jit(loop)(keys), loop(keys), atol=1e-5)


def reference_path(clip: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """x_t and x0_hat of one image at every moment, in NumPy from the same random numbers."""
    key = jax.random.fold_in(stream(5, "sample"), 2)
    kernel_denoise = denoiser()
    betas = SCHEDULE.betas.astype(float)
    alpha_bar = np.cumprod(1 - betas)
    x = np.asarray(jax.random.normal(jax.random.fold_in(key, 30), SHAPE), np.float64)
    path, predicted = [], []
    for t in range(29, -1, -1):
        eps = kernel_denoise(jnp.asarray(x[None], jnp.float32), jnp.array([t])).eps[0]
        x0 = (x - np.sqrt(1 - alpha_bar[t]) * np.asarray(eps, np.float64)) / np.sqrt(alpha_bar[t])
        path, predicted = [*path, x], [*predicted, np.clip(x0, -1, 1) if clip else x0]
        if not t:
            return [*path, predicted[-1]], [*predicted, predicted[-1]]
        previous = alpha_bar[t - 1]
        x = (
            np.sqrt(previous) * betas[t] / (1 - alpha_bar[t]) * predicted[-1]
            + np.sqrt(1 - betas[t]) * (1 - previous) / (1 - alpha_bar[t]) * x
        )
        x = x + np.sqrt(betas[t]) * np.asarray(jax.random.normal(jax.random.fold_in(key, t), SHAPE))
    raise AssertionError


@pytest.mark.parametrize(("num_frames", "clip"), [(0, True), (1, True), (4, False), (31, True)])
def test_frames_are_evenly_spaced_moments_of_the_path(num_frames, clip):
    keys = image_keys(5, jnp.arange(3))
    sampler = ancestral(SCHEDULE, clip=clip)
    result = jax.jit(lambda k: sample_loop(denoiser(), sampler, k, SHAPE, num_frames=num_frames))(
        keys
    )
    path, predicted = reference_path(clip)
    # Thirty float32 steps against float64 ones.
    np.testing.assert_allclose(result.images[2], path[-1], rtol=1e-3, atol=1e-3)
    if num_frames == 0:
        assert result.frames_x_t is None and result.frames_x0 is None
        return
    assert result.frames_x_t.shape == result.frames_x0.shape == (num_frames, 3, *SHAPE)
    moments = {1: [30], 4: [0, 10, 20, 30], 31: range(31)}[num_frames]
    for frame, moment in enumerate(moments):
        np.testing.assert_allclose(result.frames_x_t[frame, 2], path[moment], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            result.frames_x0[frame, 2], predicted[moment], rtol=1e-3, atol=2e-3
        )


def test_clipped_samples_stay_in_the_range_of_pixels():
    keys = image_keys(0, jnp.arange(8))
    assert jnp.abs(draw_images(keys)).max() <= 1
    unclipped = jax.jit(
        lambda k: sample_loop(denoiser(), ancestral(SCHEDULE, clip=False), k, SHAPE).images
    )
    assert jnp.abs(unclipped(keys)).max() > 1


@pytest.mark.parametrize("num_devices", [1, 8])
def test_progress_is_reported_once_every_n_steps_and_at_the_end(num_devices):
    seen = []
    mesh = jax.make_mesh(
        (num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    keys = jax.device_put(image_keys(0, jnp.arange(8)), NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def run(keys):
        return sample_loop(
            denoiser(), SAMPLER, keys, SHAPE, progress=seen.append, progress_every=8
        ).images

    images = run(keys)
    jax.effects_barrier()
    assert seen == [8, 16, 24, 30]
    np.testing.assert_allclose(images, draw_images(keys), atol=1e-4)


def test_bad_choices_are_one_clear_line():
    with pytest.raises(InputError, match="unknown variance 'fixed_larg'.*fixed_large, fixed_small"):
        ancestral(SCHEDULE, variance="fixed_larg")
    for num_frames in (-1, 32):
        with pytest.raises(InputError, match=f"num_frames is {num_frames}; .*from 0 to 31"):
            sample_loop(
                denoiser(), SAMPLER, image_keys(0, jnp.arange(1)), SHAPE, num_frames=num_frames
            )
    assert set(SAMPLERS) == {"ancestral"}


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_jsd_whose_last_step_erases_the_image_is_sampled_without_nan(prediction):
    schedule = make_schedule("jsd", 20)
    denoise = make_denoiser(schedule, prediction, lambda p, x, t, labels: 0.5 * x, None)
    sampler = ancestral(schedule, clip=False)
    images = jax.jit(lambda k: sample_loop(denoise, sampler, k, SHAPE).images)(
        image_keys(0, jnp.arange(2))
    )
    assert np.isfinite(images).all()

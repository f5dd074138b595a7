"""Ancestral sampling on data whose optimal denoiser is known, and what image i depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from samplers.normal_data import counted
from slow import slow, slow_after, slow_but

from diffusion_jax.errors import InputError
from diffusion_jax.keys import stream
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays
from diffusion_jax.samplers import (
    SAMPLERS,
    Sampler,
    SampleResult,
    State,
    ancestral,
    first_noise,
    image_keys,
    sample_loop,
)

MEAN = np.array([0.3, -0.5])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.25]])


def optimal_slope(alpha_bar: np.ndarray) -> np.ndarray:
    """Cov(eps, x_t) Cov(x_t)^-1: E[eps | x_t] is it times (x_t - sqrt(alpha_bar) mean)."""
    a = alpha_bar[:, None, None]
    return np.sqrt(1 - a) * np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(2))


def optimal_eps(params, x_t, t, labels):
    """The optimal eps for normal data, read from the full chain's tables at the float time."""
    slope, mean = (table[t.astype(int)] for table in params)
    centered = (x_t - mean[:, None, None, :])[:, 0, 0, None, :]
    return jnp.sum(slope * centered, axis=-1)[:, None, None, :]


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


def draw(process: DDPM, num_steps: int, keys: jax.Array, variance: str) -> np.ndarray:
    alpha_bar = np.cumprod(1 - schedule_arrays(process.schedule).betas.astype(float))
    tables = optimal_slope(alpha_bar), np.sqrt(alpha_bar)[:, None] * MEAN
    tables = jax.tree.map(lambda table: jnp.asarray(table, jnp.float32), tables)
    denoise = DiffusionModel(process, "eps", optimal_eps).denoiser(tables)
    sampler = ancestral(make_grid(process, num_steps), variance=variance)
    run = jax.jit(lambda keys: sample_loop(denoise, sampler, keys, (1, 1, 2)).images)
    return np.asarray(run(keys), np.float64)[:, 0, 0, :]


@pytest.mark.parametrize(
    ("num_timesteps", "num_steps", "variance", "discretization"),
    [
        slow(1000, 1000, "fixed_small", 0.005),
        (1000, 50, "fixed_small", 0.06),
        slow(1000, 50, "fixed_large", 0.06),
        (8, 8, "fixed_small", 0.3),
        (8, 8, "fixed_large", 0.3),
        (1, 1, "fixed_large", 1.0),
    ],
)
def test_gaussian_data_are_sampled_with_their_mean_and_covariance(
    num_timesteps, num_steps, variance, discretization
):
    n = 4_000 if num_steps == 1000 else 20_000
    process = DDPM(make_schedule("cosine", num_timesteps))
    samples = draw(process, num_steps, image_keys(0, jnp.arange(n)), variance)

    kept = np.rint(np.linspace(0, num_timesteps - 1, num_steps)).astype(int)
    betas = schedule_arrays(process.schedule).betas.astype(float)
    mean, covariance = exact_chain(np.cumprod(1 - betas)[kept], variance)
    # Five standard errors of a sample mean and of a sample covariance of normal data.
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(
        np.cov(samples.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / n)
    )
    # What is left between the chain and the data is due to its finite number of steps, and falls
    # with it.
    np.testing.assert_allclose(mean, MEAN, atol=discretization)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=discretization)


def convolution(params, x_t, t, labels):
    """A small network that mixes pixels and channels of an image."""
    x = jax.lax.conv_general_dilated(
        x_t, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x + 0.01 * t[:, None, None, None])


SCHEDULE = make_schedule("linear", 30)
PROCESS = DDPM(SCHEDULE)
SAMPLER = ancestral(make_grid(PROCESS))
SHAPE = (4, 4, 2)


def denoiser(clip: bool = True):
    kernel = jax.random.normal(jax.random.key(9), (3, 3, 2, 2)) * 0.5
    denoise = DiffusionModel(PROCESS, "eps", convolution).denoiser(kernel)
    return clip_denoised(denoise) if clip else denoise


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
    # Bit-identical at equal batch shape, whatever the neighbors and the place in the batch.
    shuffled = sample(5, [6, 11, 0, 3, 12, 1, 99, 7])
    np.testing.assert_array_equal(shuffled[[2, 3, 5]], reference[[0, 3, 1]])
    # Within float rounding, far below one pixel level of 1/127.5, at other shapes.
    for indices in ([3], [2, 3, 4]):
        np.testing.assert_allclose(sample(5, indices), reference[indices], atol=1e-4)
    # And another image for another index or seed.
    others = np.concatenate([sample(6, list(range(8))), reference[1:]])
    assert np.abs(others - reference[:1]).mean(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("num_devices", slow_after(1, [2, 8]))
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
    for one, many in zip(*map(jax.tree.leaves, (on_one, on_many)), strict=True):
        np.testing.assert_allclose(many, one, atol=1e-4)


def test_eager_and_compiled_samples_agree():
    keys = image_keys(5, jnp.arange(2))
    sampler = ancestral(make_grid(PROCESS, 3))
    loop = lambda keys: sample_loop(denoiser(), sampler, keys, SHAPE).images  # noqa: E731
    np.testing.assert_allclose(jax.jit(loop)(keys), loop(keys), atol=1e-5)


def reference_path(clip: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """x_t and x0_hat of one image at every moment, in NumPy from the same random numbers."""
    key = jax.random.fold_in(stream(5, "sample"), 2)
    kernel_denoise = denoiser(clip=False)
    betas = schedule_arrays(SCHEDULE).betas.astype(float)
    alpha_bar = np.cumprod(1 - betas)
    x = np.asarray(jax.random.normal(jax.random.fold_in(key, 0), SHAPE), np.float64)
    path, predicted = [], []
    for t in range(29, -1, -1):
        point = PROCESS.at(jnp.array([t]))
        eps = kernel_denoise(jnp.asarray(x[None], jnp.float32), point).eps[0]
        x0 = (x - np.sqrt(1 - alpha_bar[t]) * np.asarray(eps, np.float64)) / np.sqrt(alpha_bar[t])
        path, predicted = [*path, x], [*predicted, np.clip(x0, -1, 1) if clip else x0]
        if not t:
            return [*path, predicted[-1]], [*predicted, predicted[-1]]
        previous = alpha_bar[t - 1]
        x = (
            np.sqrt(previous) * betas[t] / (1 - alpha_bar[t]) * predicted[-1]
            + np.sqrt(1 - betas[t]) * (1 - previous) / (1 - alpha_bar[t]) * x
        )
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), np.float32(t).view(np.uint32))
        x = x + np.sqrt(betas[t]) * np.asarray(jax.random.normal(step_key, SHAPE))
    raise AssertionError


@pytest.mark.parametrize(
    ("num_frames", "clip"), slow_after(2, [(4, False), (31, True), (0, True), (1, True)])
)
def test_frames_are_evenly_spaced_moments_of_the_path(num_frames, clip):
    keys = image_keys(5, jnp.arange(3))
    loop = lambda k: sample_loop(denoiser(clip), SAMPLER, k, SHAPE, num_frames=num_frames)  # noqa: E731
    result = jax.jit(loop)(keys)
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
    unclipped = jax.jit(lambda k: sample_loop(denoiser(clip=False), SAMPLER, k, SHAPE).images)
    assert jnp.abs(unclipped(keys)).max() > 1


@pytest.mark.parametrize("num_devices", slow_after(1, [8, 1]))
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
        ancestral(make_grid(PROCESS), variance="fixed_larg")
    for num_frames in (-1, 32):
        with pytest.raises(InputError, match=f"num_frames is {num_frames}; .*from 0 to 31"):
            sample_loop(
                denoiser(), SAMPLER, image_keys(0, jnp.arange(1)), SHAPE, num_frames=num_frames
            )


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_jsd_whose_last_step_erases_the_image_is_sampled_without_nan(prediction):
    process = DDPM(make_schedule("jsd", 20))
    denoise = DiffusionModel(process, prediction, lambda p, x, t, labels: 0.5 * x).denoiser(None)
    sampler = ancestral(make_grid(process))
    images = jax.jit(lambda k: sample_loop(denoise, sampler, k, SHAPE).images)(
        image_keys(0, jnp.arange(2))
    )
    assert np.isfinite(images).all()


def test_the_first_noise_of_an_image_depends_neither_on_the_number_of_steps_nor_on_the_sampler():
    keys, firsts = image_keys(5, jnp.arange(3)), []

    def first(sampler: Sampler) -> jax.Array:
        frames = sample_loop(denoiser(), sampler, keys, SHAPE, num_frames=2).frames_x_t
        assert frames is not None
        return frames[0]

    for num_steps, spacing in ((3, "uniform"), (7, "uniform"), (30, "uniform"), (5, "quadratic")):
        firsts.append(first(ancestral(make_grid(PROCESS, num_steps, spacing))))
    firsts.append(first(two_step(make_grid(PROCESS, 4))))
    for drawn in firsts:
        np.testing.assert_array_equal(drawn, first_noise(keys, SHAPE))


def test_the_noise_of_a_step_is_keyed_by_its_time_not_by_its_number():
    """Two grids that share their last three times draw the same noise there."""
    keys = image_keys(5, jnp.arange(2))
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    long, short = (
        ancestral(make_grid(PROCESS, None, times)) for times in ((3, 9, 15, 28), (3, 9, 15))
    )
    tails = [
        sample_loop(denoiser(), long, keys, SHAPE, x_init=x, start=1).images,
        sample_loop(denoiser(), short, keys, SHAPE, x_init=x).images,
    ]
    # The same operations in programs of two lengths: rounding.
    np.testing.assert_allclose(tails[0], tails[1], atol=1e-6)


def test_a_prior_of_another_width_scales_the_first_noise():
    grid = make_grid(PROCESS, 3)
    wide = dataclasses.replace(grid, prior_std=7.0)
    keys = image_keys(5, jnp.arange(2))
    result = sample_loop(denoiser(), ancestral(wide), keys, SHAPE, num_frames=4)
    assert result.frames_x_t is not None
    np.testing.assert_allclose(result.frames_x_t[0], 7 * first_noise(keys, SHAPE), rtol=1e-6)


def two_step(grid: Grid) -> Sampler:
    """A toy rule with memory: x becomes the mean of the last two predictions, at first and last of one."""

    def init(x):
        return State(x, x, memory={"last": jnp.zeros_like(x), "known": jnp.zeros(())})

    def step(denoise, state, i, keys):
        x0 = denoise(state.x, grid.at(i)).x0
        known = state.memory["known"]
        x = jnp.where(known > 0, (x0 + state.memory["last"]) / 2, x0)
        return State(x, x0, memory={"last": x0, "known": known + 1})

    return Sampler(grid, step, init)


@pytest.mark.parametrize("num_frames", [0, 5])
def test_a_sampler_may_remember_earlier_predictions(compiled, num_frames):
    grid, keys = make_grid(PROCESS, 4), image_keys(5, jnp.arange(2))
    loop = lambda keys: sample_loop(denoiser(), two_step(grid), keys, SHAPE, num_frames=num_frames)  # noqa: E731
    result = compiled(loop)(keys)
    x, path, predictions = first_noise(keys, SHAPE), [], []
    for i in range(4):
        path.append(x)
        predictions.append(denoiser()(x, grid.at(jnp.array([i, i]))).x0)
        x = jnp.mean(jnp.stack(predictions[-2:]), 0) if i < 3 else predictions[-1]
    # One scan against separate steps: rounding.
    np.testing.assert_allclose(result.images, x, atol=1e-5)
    if num_frames:
        np.testing.assert_allclose(result.frames_x_t, jnp.stack([*path, x]), atol=1e-5)
        np.testing.assert_allclose(result.frames_x0, jnp.stack([*predictions, x]), atol=1e-5)


@pytest.mark.parametrize("name", slow_but(["heun", "pndm"], ["ancestral", "heun", "pndm"]))
def test_every_run_says_what_each_image_cost_and_how_far_it_came(name):
    grid, keys = make_grid(PROCESS, 6), image_keys(5, jnp.arange(2))
    options = {} if name == "ancestral" else {"process": PROCESS}
    sampler = SAMPLERS[name](grid, **options)
    denoise, calls = counted(denoiser())

    @jax.jit
    def run(x, start, stop):
        return sample_loop(denoise, sampler, keys, SHAPE, x_init=x, start=start, stop=stop).stats

    for start, stop in ((0, 6), (0, 2), (3, 6), (5, 6), (6, 6)):
        calls.clear()
        stats = run(first_noise(keys, SHAPE), start, stop)
        jax.effects_barrier()
        assert stats.evaluations.tolist() == [len(calls)] * 2 and stats.finished.all()
        assert stats.reached.tolist() == [np.float32(grid.time[stop])] * 2


@pytest.mark.parametrize("start", slow_but([11, 30], [1, 11, 29, 30]))
def test_starting_later_from_the_image_of_that_point_gives_the_tail_of_the_full_run(start):
    keys = image_keys(5, jnp.arange(3))
    full = jax.jit(lambda k: sample_loop(denoiser(), SAMPLER, k, SHAPE, num_frames=31))(keys)
    tail = jax.jit(
        lambda k, x: sample_loop(
            denoiser(), SAMPLER, k, SHAPE, x_init=x, start=start, num_frames=31 - start
        )
    )(keys, full.frames_x_t[start])
    # The same steps in two programs: rounding, which up to 29 steps enlarge.
    np.testing.assert_allclose(tail.images, full.images, atol=1e-5)
    np.testing.assert_allclose(tail.frames_x_t, full.frames_x_t[start:], atol=1e-5)


def test_a_run_to_a_point_and_one_from_there_on_are_the_whole_run_bit_for_bit():
    keys = image_keys(5, jnp.arange(3))

    @jax.jit
    def run(x, start, stop):
        return sample_loop(
            denoiser(), SAMPLER, keys, SHAPE, x_init=x, start=start, stop=stop
        ).images

    first = first_noise(keys, SHAPE)
    whole = run(first, 0, 30)
    for point in (0, 1, 11, 29, 30):
        np.testing.assert_array_equal(run(run(first, 0, point), point, 30), whole)
    # The same steps in a program of fixed length, and in one that makes the noise itself: rounding.
    fixed = jax.jit(lambda k: sample_loop(denoiser(), SAMPLER, k, SHAPE, stop=11).images)
    np.testing.assert_allclose(fixed(keys), run(first, 0, 11), atol=1e-5)
    path = draw_all_frames(keys).frames_x_t
    np.testing.assert_allclose(fixed(keys), path[11], atol=1e-5)


@jax.jit
def draw_all_frames(keys: jax.Array) -> SampleResult:
    return sample_loop(denoiser(), SAMPLER, keys, SHAPE, num_frames=31)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 31, "x_init": jnp.ones((1, *SHAPE))}, "start is 31; .*from 0 to 30"),
        ({"start": 3}, "start is 3, but x_init"),
        ({"stop": 31}, "stop is 31; .*from 0, the start, to 30"),
        ({"start": 3, "stop": 2, "x_init": jnp.ones((1, *SHAPE))}, "stop is 2; .*from 3"),
        ({"stop": 29, "num_frames": 2}, "num_frames is 2; only a run to the data"),
        ({"stop": jnp.asarray(30), "num_frames": 2}, "num_frames is 2; only a run to the data"),
        ({"start": 3, "x_init": jnp.ones((1, *SHAPE)), "num_frames": 29}, "from 0 to 28"),
    ],
)
def test_a_wrong_start_or_stop_is_one_clear_line(options, message):
    with pytest.raises(InputError, match=message):
        sample_loop(denoiser(), SAMPLER, image_keys(0, jnp.arange(1)), SHAPE, **options)


@pytest.mark.parametrize(("v", "variance"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variances_at_their_bounds_draw_what_the_fixed_ones_draw(v, variance):
    kernel = jax.random.normal(jax.random.key(9), (3, 3, 2, 2)) * 0.5

    def with_variance(kernel, x, t, labels):
        return jnp.concatenate([convolution(kernel, x, t, labels), jnp.full_like(x, v)], axis=-1)

    def images(network, variance):
        denoise = clip_denoised(DiffusionModel(PROCESS, "eps", network).denoiser(kernel))
        sampler = ancestral(make_grid(PROCESS, 10), variance=variance)
        keys = image_keys(0, jnp.arange(3))
        return jax.jit(lambda keys: sample_loop(denoise, sampler, keys, SHAPE).images)(keys)

    learned, fixed = images(with_variance, "learned"), images(convolution, variance)
    np.testing.assert_allclose(learned, fixed, atol=1e-5)  # Ten steps of float32 rounding.

"""Schedules whose last step erases the image (Lin et al., 2024, Algorithm 1)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow_but

from diffusion_jax.config import config_hash, default_config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.processes.ddpm import discrete_chain
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import SMALLEST
from diffusion_jax.processes.schedules import SCHEDULES, schedule_arrays
from diffusion_jax.samplers import SAMPLERS, Sampler, image_keys, sample_loop

PEER = dict(np.load(Path(__file__).parent / "fixtures" / "diffusers_schedules.npz"))
ABOUT = json.loads(str(PEER["about"]))


@pytest.mark.parametrize("name", ["linear", "quad", "cosine"])
def test_the_rescaled_chain_is_that_of_the_algorithm(name):
    """Line by line in float64, from betas to betas."""
    betas = SCHEDULES[name](50, *(() if name == "cosine" else (1e-3, 0.2)))
    root = np.sqrt(np.cumprod(1 - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    expected = 1 - np.append(alpha_bar[0], alpha_bar[1:] / alpha_bar[:-1])
    ends = {} if name == "cosine" else {"beta_start": 1e-3, "beta_end": 0.2}
    process = discrete_chain(schedule=name, num_timesteps=50, zero_snr=True, **ends)
    found = schedule_arrays(process.schedule)
    np.testing.assert_allclose(found.sqrt_alpha_bar[:-1], root[:-1], rtol=1e-11)
    np.testing.assert_allclose(found.betas, expected, rtol=1e-11)
    assert 0 < found.sqrt_alpha_bar[-1] <= 1.001 * SMALLEST
    assert found.alpha_bar[0] == pytest.approx(1 - betas[0], rel=1e-15)
    assert found.betas[-1] == 1


@pytest.mark.parametrize("name", ABOUT["chains"])
def test_schedules_are_those_of_diffusers(name):
    schedule = discrete_chain(**ABOUT["chains"][name]).schedule
    signal = np.exp(schedule.log_alpha_bar[PEER["steps"]] / 2)
    # diffusers multiplies 1,000 numbers in float32.
    np.testing.assert_allclose(signal, np.sqrt(PEER[name]), atol=1e-5)


def test_one_step_cannot_be_first_and_last():
    with pytest.raises(InputError, match="num_timesteps is 1; it must be at least 2 for zero_snr"):
        discrete_chain(num_timesteps=1, zero_snr=True, beta_end=0.5)


MEAN, STD = 0.3, 0.4


def best_v(process):
    """E[v | x_t] of pixels N(MEAN, STD^2): of the covariances of v and x_t, where no division is by the signal."""

    def network(params, x, time, labels=None, dropout_keys=None):
        point = process.at(time)
        signal, std = per_image(point.signal, x), per_image(point.std, x)
        gain = signal * std * (1 - STD**2) / (signal**2 * STD**2 + std**2)
        return gain * (x - signal * MEAN) - std * MEAN

    return network


SPACINGS = {"heun": "karras", "pndm": "leading"}  # They divide by the signal, and warn of another.


@pytest.mark.parametrize(
    "name", slow_but(["ancestral", "ddim"], [name for name in SAMPLERS if name != "langevin"])
)
def test_samplers_draw_the_data_from_pure_noise_by_v(name):
    process = discrete_chain(zero_snr=True)
    grid = make_grid(process, 50, SPACINGS.get(name, "trailing"))
    sampler: Sampler = SAMPLERS[name].bind(grid=grid, process=process)()
    denoise = DiffusionModel(process, "v", best_v(process)).denoiser({})
    draw = jax.jit(lambda keys: sample_loop(denoise, sampler, keys, (32, 32, 1)).images)
    images = draw(image_keys(0, jnp.arange(8)))
    # 8,192 pixels; the errors of 50 steps are larger.
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(images.std()) == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_says_what_the_image_is_at_the_last_step_or_is_refused(prediction):
    """Output 1 for noise 0: a network of the noise alone would make an image of 5e8."""
    config = default_config()
    config.process.zero_snr = True
    config.process.prediction = prediction
    process = discrete_chain(zero_snr=True)
    point, x = process.at(jnp.array([999])), jnp.zeros((1, 4))
    preconditioning = PREDICTIONS[prediction].bind(process=process)()
    x0, eps = preconditioning.predict(point, x, jnp.ones_like(x))
    if prediction in ("eps", "score"):
        assert np.abs(x0).min() > 1e8
        with pytest.raises(InputError, match=f"process.zero_snr is True, .*{prediction}.* x0, v,"):
            build.validate(config)
    else:
        # The posterior mean has 6e-5 of x_0 there: a poor choice, but finite.
        assert np.abs(x0).max() < (1e5 if prediction == "mean" else 2) and np.isfinite(eps).all()
        build.validate(config)


def test_it_counts_in_the_hash_of_a_run_only_where_it_is_set():
    config = default_config()
    before = config_hash(config)
    assert config.process.zero_snr is False
    config.process.zero_snr = True
    assert config_hash(config) != before


def test_it_needs_the_chain():
    config = default_config()
    config.process.name = "vp"
    config.process.zero_snr, config.process.prediction = True, "v"
    with pytest.raises(InputError, match="process.zero_snr is True, but the process 'vp' has none"):
        build.validate(config)

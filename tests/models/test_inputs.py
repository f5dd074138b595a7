"""What networks are given, against the formulas of the papers' code, for pixels in [0, 1]."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import config_hash, default_config, override
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.inputs import INPUTS, level_inputs, ve_inputs
from diffusion_jax.models.preconditioning import PREDICTIONS
from diffusion_jax.processes.ddpm import discrete_chain
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.sde import VE

SCORE = PREDICTIONS["score"]()


def network(seen):
    def apply(params, x, time, labels=None, dropout_keys=None):
        seen.update(x=np.asarray(x), time=np.asarray(time))
        return jnp.sin(x) + 0.1 * time[:, None]

    return apply


def test_a_ve_network_is_that_of_karras_et_al(rng):
    """c_skip = c_in = 1, c_out = sigma, c_noise = log(sigma / 2), and D = c_skip x + c_out F (their Table 1)."""
    process, seen = VE(), {}
    sigma = np.array([0.02, 0.5, 7.0, 100.0])
    x = rng.normal(size=(4, 3)) * sigma[:, None]
    model = DiffusionModel(process, dataclasses.replace(SCORE, inputs=ve_inputs), network(seen))
    found = model.predict({}, jnp.asarray(x, jnp.float32), process.at(jnp.log(sigma)))
    noise = np.log(sigma / 2)
    np.testing.assert_allclose(seen["x"], x, rtol=1e-6)
    np.testing.assert_allclose(seen["time"], noise, atol=2e-6)
    denoised = x + sigma[:, None] * (np.sin(x) + 0.1 * noise[:, None])
    np.testing.assert_allclose(found.x0, denoised, rtol=1e-4, atol=1e-4)


def test_its_score_is_that_of_song_et_al_for_their_pixels(rng):
    """Given 2 x' - 1 and log sigma' for noised x' in [0, 1], their network returns h; the score is h / sigma'."""
    process, seen = VE(), {}
    sigma_01 = np.array([0.01, 0.3, 50.0])
    x_01 = rng.uniform(size=(3, 5)) + sigma_01[:, None] * rng.normal(size=(3, 5))
    model = DiffusionModel(process, dataclasses.replace(SCORE, inputs=ve_inputs), network(seen))
    x = jnp.asarray(2 * x_01 - 1, jnp.float32)
    found = model.predict({}, x, process.at(jnp.log(2 * sigma_01)))
    h = np.sin(2 * x_01 - 1) + 0.1 * np.log(sigma_01)[:, None]
    # d/dx' = 2 d/dx.
    np.testing.assert_allclose(2 * found.score, h / sigma_01[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_levels", [2, 10, 1000])
def test_levels_are_counted_from_the_largest_sigma(num_levels):
    """As the labels of NCSN's code are, indices of this list; halfway between two of them is neither."""
    process = NCSN(num_timesteps=num_levels, sigma_min=0.02, sigma_max=100.0)
    descending = np.exp(np.linspace(np.log(100.0), np.log(0.02), num_levels))
    inputs = level_inputs(process)
    point = process.at(jnp.log(jnp.asarray(descending, jnp.float32)))
    given = inputs(point, jnp.ones((num_levels, 1)))
    np.testing.assert_array_equal(given.time, np.arange(num_levels))
    np.testing.assert_array_equal(given.x, 1.0)
    whole = make_grid(process)  # The times that a sampler visits.
    at_grid = inputs(whole.at(jnp.arange(num_levels)), jnp.ones((num_levels, 1)))
    np.testing.assert_array_equal(at_grid.time, np.arange(num_levels))


def test_steps_of_a_chain_are_counted_from_the_last():
    process = discrete_chain(num_timesteps=20)
    given = level_inputs(process)(process.at(jnp.array([0, 5, 19])), jnp.ones((3, 1)))
    np.testing.assert_array_equal(given.time, [19, 14, 0])


@pytest.mark.parametrize("prediction", [p for p in PREDICTIONS if p != "edm"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_a_config_gives_its_inputs_to_the_network_of_each_prediction(prediction, inputs):
    config = default_config()
    override(
        config,
        [
            ("process.name", "ncsn"),
            ("process.num_timesteps", "10"),
            ("process.prediction", prediction),
            ("process.inputs", inputs),
            ("model.name", "mlp"),
        ],
    )
    build.validate(config)
    exp = build.build(config, (2, 2, 1), 0)
    x, point = jnp.ones((1, 2, 2, 1)), exp.process.at(jnp.log(jnp.array([100.0])))
    given = exp.model.preconditioning.inputs(point, x)
    scale, time = {
        "unit": (np.hypot(1, 100), np.log(100)),
        "ve": (1, np.log(50)),
        "level": (1, 0),
    }[inputs]
    np.testing.assert_allclose(given.x, np.ones((1, 2, 2, 1)) / scale, rtol=1e-6)
    np.testing.assert_allclose(given.time, [time], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prediction": "edm", "inputs": "ve"},
            "process.inputs is 've', but the prediction 'edm' has none",
        ),
        (
            {"name": "ve", "inputs": "level"},
            "process.inputs is 'level', but the process has no noise levels to count; it is for ddpm and ncsn",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(fields, message):
    config = default_config()
    config.process.update(fields)
    with pytest.raises(InputError, match=message):
        build.validate(config)


def test_they_count_in_the_hash_of_a_run_only_where_they_are_set():
    config = default_config()
    before = config_hash(config)
    config.process.inputs = "ve"
    assert config_hash(config) != before
    config.process.inputs = "unit"
    assert config_hash(config) == before

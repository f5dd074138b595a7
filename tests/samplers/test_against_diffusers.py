"""Our samplers against images that diffusers' schedulers made of the same x_T, noise and eps.

`benchmarks/parity/samplers.py` writes the fixture.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture_data import make_sampler, optimal

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import image_keys, sample_loop

IMAGES = dict(np.load(Path(__file__).parent / "fixtures" / "diffusers.npz"))
ABOUT = json.loads(str(IMAGES.pop("about")))
PROCESS = DDPM(make_schedule("linear", 1000))


@pytest.mark.parametrize("run", ABOUT["runs"])
def test_ten_steps_give_the_images_of_diffusers(run):
    sampler, options, times = ABOUT["runs"][run]
    expected, rule = (
        IMAGES[run],
        make_sampler(sampler, PROCESS, make_grid(PROCESS, None, times), options),
    )
    keys = image_keys(ABOUT["seed"], jnp.arange(len(expected)))
    draw = jax.jit(lambda keys: sample_loop(optimal, rule, keys, expected.shape[1:]).images)
    # Two computations in float32; diffusers' takes x_0 from eps, which at the first time multiplies rounding by 157.
    np.testing.assert_allclose(draw(keys), expected, atol=1e-4)

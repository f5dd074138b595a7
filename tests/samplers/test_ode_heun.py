"""Heun's rule in the angle: its order for every process, evaluations, and its end at the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import counted, flow, optimal, slopes
from slow import slow_but

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import image_keys, ode_heun, sample_loop

PROCESSES = {"ddpm": DDPM(make_schedule("linear", 1000)), "vp": VP(), "subvp": SubVP(), "ve": VE()}
SHAPE = (2, 2, 1)


def solved(process: Process, num_steps: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images at the last point, from x at the first, and the exact ones."""
    grid, keys = make_grid(process, num_steps + 1, "logsnr"), image_keys(0, jnp.arange(len(x)))
    draw = jax.jit(
        lambda x: sample_loop(optimal, ode_heun(grid), keys, SHAPE, x_init=x, stop=num_steps).images
    )
    return np.asarray(draw(jnp.float32(x))), flow(grid, x, 0, num_steps)


@pytest.mark.parametrize("name", slow_but(["ve"], PROCESSES))
def test_the_ode_is_solved_with_order_2(name):
    process = PROCESSES[name]
    x = process.prior_std * np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    errors = []
    for num_steps in (20, 40, 80):
        images, exact = solved(process, num_steps, x)
        errors.append(float(np.abs(images - exact).max()))
    # Of the last two, since the terms of order 3 are not small at 20 steps.
    assert slopes(errors)[-1] == pytest.approx(2, abs=0.2)


def test_there_are_two_evaluations_a_step_but_one_in_the_last_which_ends_at_x0_hat():
    sampler = ode_heun(make_grid(PROCESSES["ve"], 3))
    denoise, calls = counted(optimal)
    result = sample_loop(denoise, sampler, image_keys(0, jnp.arange(2)), SHAPE, num_frames=4)
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == 5
    assert result.frames_x0 is not None
    np.testing.assert_array_equal(result.images, result.frames_x0[2])

"""The probability-flow ODE of every process in the log of std / signal."""

import jax
import jax.numpy as jnp
import mixture_data
import numpy as np
import pytest
from samplers import normal_data
from slow import slow

from diffusion_jax.models.flow import field_of, level
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ode import solve
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP

PROCESSES = {
    "ddpm": DDPM(make_schedule("linear", 1000)),
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_min=0.02, sigma_max=20.0),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("data", [normal_data, slow(mixture_data)])
def test_the_flow_of_every_process_is_the_exact_one(name, data, rng):
    process = PROCESSES[name]
    grid = make_grid(process, 10, "logsnr")
    x = jnp.asarray(grid.prior_std * rng.normal(size=(20, 2)), jnp.float32)

    @jax.jit
    def carried(x):
        first, last = (grid.at(jnp.full(20, i)) for i in (0, 9))
        z = x / per_image(first.scale, x)
        solution = solve(
            field_of(data.optimal, process), z, level(first), level(last), rtol=1e-6, atol=1e-6
        )
        return solution.y * per_image(last.scale, x), solution

    end, solution = carried(x)
    assert solution.stats.finished.all()
    # float32 sums over some 30 steps of 1e-6 each, spread by the flow where components part.
    np.testing.assert_allclose(end, data.flow(grid, np.asarray(x), 0, 9), atol=3e-5)

"""The samplers of score models on a mixture of normal distributions, for every process that they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture_data import ks_distance, make_sampler, optimal
from slow import slow_but

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import image_keys, sample_loop

PROCESSES = {"ddpm": DDPM(make_schedule("linear", 1000)), "vp": VP(), "subvp": SubVP(), "ve": VE()}
PROCESSES["ncsn"] = NCSN()
# Steps, evenly spaced in log SNR, and what their error adds to that of sampling. That of the rules of order 1 halves
# in twice as many steps; of Langevin moves it is their own, too.
STEPS = {
    "euler_maruyama": (30, 0.035),
    "langevin": (20, 0.05),
    "ode_heun": (20, 0.0),
    "pc": (25, 0.05),
    "reverse_diffusion": (25, 0.055),
}


# NCSN has VE's marginals: of the solvers, those that its papers take are enough. The steps of predictor-corrector are
# those of reverse diffusion, on every process, and of Langevin moves: NCSN and sub-VP, which feels errors most, do.
ONLY = {"langevin": ("ve", "ncsn"), "pc": ("subvp", "ncsn")}
RUNS = [
    (name, process)
    for name in STEPS
    for process in ONLY.get(name, [process for process in PROCESSES if process != "ncsn"])
]


@pytest.mark.parametrize(
    ("name", "process"),
    slow_but(
        [("langevin", "ve"), ("pc", "subvp"), ("ode_heun", "vp"), ("euler_maruyama", "ddpm")], RUNS
    ),
)
def test_20_000_samples_are_the_mixture_with_the_noise_left_at_the_last_point(name, process):
    num_steps, error = STEPS[name]
    made = PROCESSES[process]
    grid = make_grid(made, num_steps, "logsnr")
    sampler, n = make_sampler(name, made, grid, {}), 20_000
    draw = jax.jit(
        lambda keys: sample_loop(optimal, sampler, keys, (2,), stop=num_steps - 1).images
    )
    x = np.asarray(draw(image_keys(1, jnp.arange(n))), np.float64)
    distance = ks_distance(x, float(np.exp(grid.log_signal[-2])), float(grid.std[-2]))
    # 1.95 / sqrt(n): exact samples are above it once in a thousand times.
    assert distance.max() < 1.95 / np.sqrt(n) + error

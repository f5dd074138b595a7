"""Compares `heun` on VE with EDM's own `edm_sampler` (Karras et al., 2022, Algorithm 2), from the same unit noise.

The denoiser is known, of pixels from N(-0.5, 0.2^2) or N(0.5, 0.2^2), as often; each side computes it by itself, and
makes x_T itself: EDM's begins at sigma = 80 or the network's largest, if that is smaller. Theirs is in float64, ours in
float32. Reported is the largest difference of the final images; the exit status is 1 if it is above 1e-5.

EDM's code is not part of this project: --edm is a checkout of NVlabs/edm, --peer_python the interpreter of an
environment with torch.

  PYTHONPATH=benchmarks python benchmarks/parity/edm.py --edm=EDM --peer_python=/path/to/venv/bin/python
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import report

from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.sde import VE
from diffusion_jax.samplers import first_noise, heun, image_keys, sample_loop

TOLERANCE = 1e-5
SIGMA_MAX = (80.0, 100.0, 1348.0)
STEPS = (10, 18, 40)
MODE, MODE_STD = 0.5, 0.2
SIGMA_MIN, SHAPE, IMAGES = 0.01, (8, 8, 3), 64


def network(params: None, x: jax.Array, log_sigma: jax.Array, labels: None) -> jax.Array:
    """Returns E[x_0 | x_t] of the images as networks see them, x_t / (1 + sigma^2)^(1/2)."""
    sigma = jnp.exp(log_sigma)[:, None, None, None]
    variance = MODE_STD**2 + sigma**2
    x_t = x * jnp.hypot(1.0, sigma)
    mode = MODE * jnp.tanh(MODE * x_t / variance)
    return (MODE_STD**2 * x_t + sigma**2 * mode) / variance


def ours(sigma_max: float, num_steps: int) -> tuple[np.ndarray, float]:
    """Returns our images, and the smallest sigma of their grid."""
    process = VE(sigma_min=SIGMA_MIN, sigma_max=sigma_max)
    grid = make_grid(process, num_steps, "karras")
    denoise = DiffusionModel(process, "x0", network).denoiser(None)
    draw = jax.jit(lambda keys: sample_loop(denoise, heun(grid, process), keys, SHAPE).images)
    return np.asarray(draw(keys())), float(grid.std[-2])


def keys() -> jax.Array:
    """Returns the images' keys."""
    return image_keys(0, jnp.arange(IMAGES))


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edm", required=True, help="checkout of NVlabs/edm")
    parser.add_argument("--peer_python", required=True, help="Python with torch")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    drawn, asked = {}, {}
    noise = np.asarray(first_noise(keys(), SHAPE))
    for sigma_max in SIGMA_MAX:
        for num_steps in STEPS:
            images, smallest = ours(sigma_max, num_steps)
            options = {"net_sigma_max": sigma_max, "num_steps": num_steps, "sigma_min": smallest}
            drawn[sigma_max, num_steps] = images, json.dumps(options)
            asked[json.dumps(options)] = noise
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "given.npz"), Path(folder, "output.npz")
        np.savez(given, **asked)
        script = Path(__file__).with_name("edm_peer.py")
        command = [arguments.peer_python, script, arguments.edm, given, output]
        subprocess.run([str(part) for part in command], check=True)
        theirs = dict(np.load(output))
    different = {
        key: float(np.abs(images - theirs[name]).max()) for key, (images, name) in drawn.items()
    }
    rows = [
        [f"{sigma_max:g}", *(f"{different[sigma_max, n]:.1e}" for n in STEPS)]
        for sigma_max in SIGMA_MAX
    ]
    report.print_table(["sigma_max", *(f"{n} steps" for n in STEPS)], rows)
    report.write(arguments.out, {"differences": {str(k): v for k, v in different.items()}})
    return int(max(different.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

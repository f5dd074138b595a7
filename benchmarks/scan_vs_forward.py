"""Measures what the sampling loop costs beyond the network: a compiled scan against its forward passes.

Draws images with the CIFAR-10 U-Net (or --digits: that of configs/digits.py, without its classes) by ancestral
sampling in --steps steps, one `lax.scan`, and does the same number of compiled forward passes of the same
batch; the two take turns. The ratio should be hardly above 1: a loop body must not run slower than the same
operations outside a loop. On a GPU the passes are queued and waited for at the end, which hides the time to
start each but the first.

  python benchmarks/scan_vs_forward.py --steps 10 50 1000 --out=scan.json
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import report

from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.models.networks import UNet, as_functions, count_parameters
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import ancestral, image_keys, sample_loop

Sides = dict[str, Callable[[], float]]
ONE = "forward passes"
# Network, and the shape of its images.
CIFAR10 = UNet(), (32, 32, 3)
DIGITS = UNet(32, (1, 2), num_res_blocks=1, attention_resolutions=(4,)), (8, 8, 1)


def make_sides(network: UNet, shape: tuple[int, int, int], batch_size: int, steps: int) -> Sides:
    """Returns the two sides, compiled and warmed up; each gives its seconds."""
    model = as_functions(network, shape)
    params = model.init(jax.random.key(0))
    print(f"{count_parameters(params):,} parameters, {steps} steps")
    process = DDPM(make_schedule())
    sampler = ancestral(make_grid(process, steps))
    queued = jax.default_backend() != "cpu"

    def draw(params: Any, keys: jax.Array) -> jax.Array:
        denoise = clip_denoised(DiffusionModel(process, "eps", model.apply).denoiser(params))
        return sample_loop(denoise, sampler, keys, shape).images

    scan, forward = jax.jit(draw), jax.jit(model.apply)
    keys = image_keys(0, jnp.arange(batch_size))
    x = jax.random.normal(jax.random.key(1), (batch_size, *shape))
    t = jnp.arange(batch_size, dtype=jnp.float32)

    def time_scan() -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(params, keys))
        return time.perf_counter() - started

    def time_forward() -> float:
        started = time.perf_counter()
        for step in range(steps):
            done = forward(params, x, t)
            if not queued or step == steps - 1:
                jax.block_until_ready(done)
        return time.perf_counter() - started

    compiled = scan.lower(params, keys).compile()
    jax.block_until_ready(compiled(params, keys))
    jax.block_until_ready(forward(params, x, t))
    return {"scan": time_scan, ONE: time_forward}


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[200])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--digits", action="store_true", help="the network of the digits")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    network, rows, runs = DIGITS if arguments.digits else CIFAR10, [], []
    for steps in arguments.steps:
        sides = make_sides(*network, arguments.batch_size, steps)
        seconds = report.alternate(sides, arguments.repeats)
        medians = {name: report.median(values) for name, values in seconds.items()}
        ratio = medians["scan"] / medians[ONE]
        runs.append({"steps": steps, "seconds": seconds, "ratio": ratio})
        rows += [
            [
                f"{steps} x {name}",
                medians[name],
                min(values),
                max(values),
                medians[name] / medians[ONE],
            ]
            for name, values in seconds.items()
        ]
    header = ["what", "median s", "fastest", "slowest", "against forward passes"]
    report.print_table(header, rows)
    settings = {"batch_size": arguments.batch_size, "digits": arguments.digits}
    device = jax.devices()[0].device_kind
    report.write(arguments.out, {**settings, "device": device, "runs": runs})


if __name__ == "__main__":
    main()

"""Measures what the sampling loop costs beyond the network: a compiled scan against its forward passes.

Draws images with the CIFAR-10 U-Net by ancestral sampling in --steps steps, one `lax.scan`, and does
the same number of compiled forward passes of the same batch; the two take turns. The ratio should be
hardly above 1: a loop body must not run slower than the same operations outside a loop.

  python benchmarks/scan_vs_forward.py --out=scan.json
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import report

from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.guidance import clip_denoised
from diffusion_jax.models import UNet, as_functions, count_parameters
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import ancestral, image_keys, sample_loop

SHAPE = (32, 32, 3)


def make_sides(batch_size: int, steps: int) -> dict[str, Callable[[], float]]:
    """Returns the two sides, compiled and warmed up; each gives its seconds."""
    model = as_functions(UNet(), SHAPE)
    params = model.init(jax.random.key(0))
    print(f"{count_parameters(params):,} parameters")
    process = DDPM(make_schedule())
    sampler = ancestral(process.grid(steps))

    def draw(params: Any, keys: jax.Array) -> jax.Array:
        denoise = clip_denoised(make_denoiser(process, "eps", model.apply, params))
        return sample_loop(denoise, sampler, keys, SHAPE).images

    scan, forward = jax.jit(draw), jax.jit(model.apply)
    keys = image_keys(0, jnp.arange(batch_size))
    x = jax.random.normal(jax.random.key(1), (batch_size, *SHAPE))
    t = jnp.arange(batch_size, dtype=jnp.float32)

    def time_scan() -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(params, keys))
        return time.perf_counter() - started

    def time_forward() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(forward(params, x, t))
        return time.perf_counter() - started

    compiled = scan.lower(params, keys).compile()
    jax.block_until_ready(compiled(params, keys))
    jax.block_until_ready(forward(params, x, t))
    return {"scan": time_scan, "forward passes": time_forward}


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    sides = make_sides(arguments.batch_size, arguments.steps)
    seconds = report.alternate(sides, arguments.repeats)
    medians = {name: report.median(values) for name, values in seconds.items()}
    ratio = medians["scan"] / medians["forward passes"]
    rows = [
        [f"{arguments.steps} x {name}", medians[name], min(values), max(values)]
        for name, values in seconds.items()
    ]
    report.print_table(["what", "median s", "fastest", "slowest"], rows)
    print(f"\nscan / forward passes: {ratio:.3f}")
    settings = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    report.write(arguments.out, {**settings, "seconds": seconds, "ratio": ratio})


if __name__ == "__main__":
    main()

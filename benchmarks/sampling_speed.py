"""Measures how many images a second are drawn: a config's network with random weights, its sampler, one program.

Whole batches, from the seed to the pixels in the host's memory, as --mode=sample draws them, after one batch that
compiles and warms up. Each --dtypes is a program of its own (model.dtype). On a GPU float32 has JAX's default
products, of TF32 numbers. Unknown flags, such as --config.sampler.num_steps=20, go to the config.

  python benchmarks/sampling_speed.py --batch_size=1000 --out=sampling.json
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

from diffusion_jax import config as config_lib
from diffusion_jax.commands.command_line import parse
from diffusion_jax.experiment import build, sampling
from diffusion_jax.parallel import join, sharding
from diffusion_jax.samplers.batches import make_batch_sampler

DEFAULTS = [
    ("sampler.name", "dpmpp_2m"),
    ("sampler.num_steps", "10"),
    ("sampler.spacing", "trailing"),
]
MANY = 50_000  # Images that an FID is measured with.


def measure(arguments: argparse.Namespace, changes: list[tuple[str, str]], dtype: str) -> Any:
    """Returns the figures of one type of the computation."""
    config = config_lib.load_file(arguments.config)
    config_lib.override(config, [*DEFAULTS, *changes, ("model.dtype", dtype)])
    build.validate(config)
    shape = tuple(arguments.image)
    run = build.build(config, shape, config.model.num_classes)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    place = sharding.replicated(mesh)
    params = jax.jit(run.network.init, out_shardings=place)(jax.random.key(0))
    draw = make_batch_sampler(
        sampling.make_draw(run), mesh, arguments.batch_size, num_classes=config.model.num_classes
    )
    settings, seconds = sampling.traced_options(run), []
    for batch in range(1 + arguments.repeats):
        indices = batch * arguments.batch_size + np.arange(arguments.batch_size)
        started = time.perf_counter()
        draw(params, settings, indices)
        seconds.append(time.perf_counter() - started)
        print(f"  {dtype}, batch {batch}: {seconds[-1]:.3f} s", flush=True)
    return {"first_seconds": seconds[0], "seconds": seconds[1:], **sampling.sampler_options(run)}


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--image", type=int, nargs=3, default=[32, 32, 3], help="H W C")
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments, overrides = parser.parse_known_args()
    _, changes = parse([f"--config={arguments.config}", *overrides])
    join.initialize()
    figures = {dtype: measure(arguments, changes, dtype) for dtype in arguments.dtypes}
    rows = []
    for dtype, of in figures.items():
        speed = arguments.batch_size / report.median(of["seconds"])
        of["images_per_sec"] = speed
        rows.append([dtype, f"{of['name']}, {of['num_steps']}", of["first_seconds"]])
        rows[-1] += [report.median(of["seconds"]), f"{speed:,.1f}", f"{MANY / speed:,.1f}"]
    header = ["type", "sampler, steps", "first batch s", "median s", "images/s", f"s for {MANY:,}"]
    report.print_table(header, rows)
    about = {"device": jax.devices()[0].device_kind, "batch_size": arguments.batch_size}
    report.write(arguments.out, {**about, "overrides": overrides, "figures": figures})


if __name__ == "__main__":
    main()

"""Measures what the variational bound costs beyond the network: all its terms against as many forward passes.

(a) Time. The bound of one batch with every term of T steps, one compiled program as an evaluation runs it (DDPM, a
clipped denoiser, the discretized decoder), and T calls of one compiled forward pass of the same batch; the two take
turns, each after an untimed pass, since a virtual machine may take back the free memory of a side that waits. The
CIFAR-10 U-Net with batch 4, and the digits' network with labels and batch 64.

(b) Memory. Temporary and output bytes of the compiled bound with T = 1000 and T = 100, of the digits' network and of
a small U-Net on 32x32x3: they may differ by what a term returns (four numbers an image), not by an image.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/bound_vs_forward.py --out=bound.json
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report

from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.vlb import VLB, variational_bound
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.models.networks import Model, UNet, as_functions
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule

CLASSES = 10
MEMORY_STEPS = (100, 1000)


class Setting(NamedTuple):
    """A network, what it predicts, and the batch.

    Attributes:
      classes: Number of classes; 0 without labels.
    """

    module: UNet
    shape: tuple[int, int, int]
    batch_size: int
    schedule: str = "linear"
    prediction: str = "eps"
    variance: str = "fixed_large"
    classes: int = 0

    def model(self) -> Model:
        """Returns the network as functions."""
        return as_functions(self.module, self.shape)

    def labels(self) -> jax.Array | None:
        """Returns a class for each image, if there are classes."""
        return jnp.arange(self.batch_size) % self.classes if self.classes else None


SETTINGS = {
    "CIFAR-10": Setting(UNet(), (32, 32, 3), batch_size=4),
    "digits": Setting(  # Of configs/digits.py.
        UNet(32, (1, 2), 1, (4,), num_classes=CLASSES),
        (8, 8, 1),
        batch_size=64,
        schedule="cosine",
        prediction="v",
        variance="fixed_small",
        classes=CLASSES,
    ),
    "small, 32x32x3": Setting(UNet(32, (1, 2), 1, (16,)), (32, 32, 3), batch_size=16),
}


def bound_of(setting: Setting, steps: int) -> jax.stages.Wrapped:
    """Returns the compiled (params, x0, keys) -> VLB on a grid of `steps` steps."""
    process = DDPM(make_schedule(setting.schedule))
    apply, labels = setting.model().apply, setting.labels()
    grid = make_grid(process, steps)

    @jax.jit
    def bound(params: Any, x0: jax.Array, keys: jax.Array) -> VLB:
        denoise = DiffusionModel(process, setting.prediction, apply).denoiser(params, labels)
        return variational_bound(clip_denoised(denoise), grid, x0, keys, variance=setting.variance)

    return bound


def inputs_of(setting: Setting) -> tuple[Any, jax.Array, jax.Array]:
    """Returns parameters, images of 256 levels and keys."""
    shape = (setting.batch_size, *setting.shape)
    levels = np.random.default_rng(0).integers(256, size=shape)
    keys = indexed(jax.random.key(1), jnp.arange(setting.batch_size))
    params = jax.jit(setting.model().init)(jax.random.key(0))
    return params, jnp.asarray(levels / 127.5 - 1, jnp.float32), keys


def make_sides(setting: Setting, steps: int) -> dict[str, Callable[[], float]]:
    """Returns the two sides, compiled; each gives its seconds."""
    params, x0, keys = inputs_of(setting)
    compiled = bound_of(setting, steps).lower(params, x0, keys).compile()
    apply, labels = setting.model().apply, setting.labels()
    forward = jax.jit(lambda params, x, t: apply(params, x, t, labels))
    t = jnp.arange(setting.batch_size, dtype=jnp.float32)

    def time_bound() -> float:
        jax.block_until_ready(forward(params, x0, t))
        started = time.perf_counter()
        jax.block_until_ready(compiled(params, x0, keys))
        return time.perf_counter() - started

    def time_forward() -> float:
        jax.block_until_ready(forward(params, x0, t))
        started = time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(forward(params, x0, t))
        return time.perf_counter() - started

    jax.block_until_ready(forward(params, x0, t))
    return {"bound": time_bound, "forward passes": time_forward}


def time_of(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """Returns the seconds of both sides of a setting, and the ratio of their medians."""
    print(f"{name}, batch {SETTINGS[name].batch_size}, T = {steps}", flush=True)
    seconds = report.alternate(make_sides(SETTINGS[name], steps), repeats)
    medians = {side: report.median(values) for side, values in seconds.items()}
    ratio = medians["bound"] / medians["forward passes"]
    return {"steps": steps, "seconds": seconds, "medians": medians, "ratio": ratio}


def memory_of(name: str, steps: int) -> dict[str, int]:
    """Returns the bytes of the compiled bound: temporary ones, and its outputs."""
    shapes = jax.eval_shape(lambda: inputs_of(SETTINGS[name]))
    analysis = bound_of(SETTINGS[name], steps).lower(*shapes).compile().memory_analysis()
    assert analysis is not None
    return {
        "temporary": analysis.temp_size_in_bytes,
        "output": analysis.output_size_in_bytes,
    }


def main() -> None:
    """Prints two tables, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of the CIFAR-10 U-Net")
    parser.add_argument("--digits_steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    memory = {
        name: {steps: memory_of(name, steps) for steps in MEMORY_STEPS}
        for name in ("digits", "small, 32x32x3")
    }
    rows = [
        [f"{name}, T = {steps}", *(f"{size:,}" for size in sizes.values())]
        for name, of_steps in memory.items()
        for steps, sizes in of_steps.items()
    ]
    report.print_table(["bound", "temporary bytes", "output bytes"], rows)
    times = {
        "digits": time_of("digits", arguments.digits_steps, arguments.repeats),
        "CIFAR-10": time_of("CIFAR-10", arguments.steps, arguments.repeats),
    }
    rows = [
        [f"{name}, T = {of['steps']}", *of["medians"].values(), of["ratio"]]
        for name, of in times.items()
    ]
    report.print_table(["median s", "bound", "forward passes", "bound / forward"], rows)
    report.write(arguments.out, {"memory": memory, "times": times})


if __name__ == "__main__":
    main()

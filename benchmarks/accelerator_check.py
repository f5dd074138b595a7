"""Compares what an accelerator computes with what the CPU does: outputs, gradients, images of the same seed.

One process runs the same programs on both. The weights are random and no layer is zero. Reported is
max|accelerator - CPU| / max|CPU|: of the gradients the largest over the arrays, whose own size counts as a thousandth
of the largest gradient's at least (that of the keys' bias is zero but for rounding); of the images, drawn with the
digits' network from the same keys in ten steps, nearly the difference of pixels in [-1, 1]. Once with products of
float32 numbers (jax_default_matmul_precision=highest), which must agree to 1e-3 (1e-2 for images, whose errors add up),
and once with the accelerator's default products, which is only reported. The exit status is 1 if a bar is missed.

  PYTHONPATH=benchmarks python benchmarks/accelerator_check.py --out=check.json
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from parity.unet import random_parameters
from unet_vs_diffusers import CIFAR10, Size

from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.models.networks import Model
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import ancestral, ddim, image_keys, sample_loop

DIGITS = Size((8, 8, 1), 32, (1, 2), (4,), batch_size=10, groups=8, num_res_blocks=1)
SIZES = {"CIFAR-10": dataclasses.replace(CIFAR10, batch_size=4), "digits": DIGITS}
SAMPLERS: dict[str, Callable[..., Any]] = {"ddim": ddim, "ancestral": ancestral}
STEPS = 10
PRECISIONS = ("highest", "default")
LIMIT, IMAGE_LIMIT = 1e-3, 1e-2

Program = Callable[..., Any]


def programs(model: Model) -> dict[str, Program]:
    """Returns name -> (params, x, t) -> arrays, of outputs and gradients."""

    def loss(params: Any, x: Any, t: Any) -> Any:
        return jnp.square(model.apply(params, x, t) - x).mean()

    return {"output": model.apply, "gradients": jax.grad(loss, argnums=(0, 1))}


def sampling(size: Size, model: Model) -> dict[str, Program]:
    """Returns name -> (params, x, t) -> images, one for each row of x, which is not used otherwise."""
    process = DDPM(make_schedule("cosine"))

    def draw(name: str, params: Any, x: Any, t: Any) -> Any:
        denoise = clip_denoised(DiffusionModel(process, "v", model.apply).denoiser(params))
        sampler = SAMPLERS[name](make_grid(process, STEPS, "trailing"))
        return sample_loop(denoise, sampler, image_keys(0, jnp.arange(len(x))), size.image).images

    return {f"images, {name}": functools.partial(draw, name) for name in SAMPLERS}


def difference(found: Any, expected: Any) -> float:
    """Returns the largest difference over the size of the numbers expected, the largest over the arrays."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    sizes = [float(np.abs(array).max()) for array in expected]
    least = max(sizes) / 1000
    pairs = zip(found, expected, sizes, strict=True)
    return max(float(np.abs(a - b).max()) / max(size, least) for a, b, size in pairs)


def compare(name: str, size: Size) -> dict[str, dict[str, float]]:
    """Returns what -> precision -> difference of the accelerator's results from the CPU's."""
    model, rng = size.model(), np.random.default_rng(0)
    params = random_parameters(jax.eval_shape(model.init, jax.random.key(0)), rng)
    x = rng.normal(size=(size.batch_size, *size.image)).astype(np.float32)
    t = rng.integers(0, 1000, size.batch_size).astype(np.float32)

    def run(program: Program, device: Any, precision: str) -> Any:
        with jax.default_device(device), jax.default_matmul_precision(precision):
            # A function of its own, since programs are kept by function.
            return jax.device_get(jax.jit(functools.partial(program))(params, x, t))

    differences = {}
    work = programs(model) | (sampling(size, model) if name == "digits" else {})
    for what, program in work.items():
        expected = run(program, jax.devices("cpu")[0], "highest")
        differences[what] = {
            precision: difference(run(program, jax.devices()[0], precision), expected)
            for precision in PRECISIONS
        }
    return differences


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    device, figures, rows, missed = jax.devices()[0], {}, [], False
    print(f"{device.device_kind} ({device.platform}) against the CPU, jax {jax.__version__}")
    for name in arguments.sizes:
        figures[name] = compare(name, SIZES[name])
        for what, found in figures[name].items():
            limit = IMAGE_LIMIT if what.startswith("images") else LIMIT
            missed |= not found["highest"] <= limit
            rows.append([name, what, *(f"{found[precision]:.1e}" for precision in PRECISIONS)])
            rows[-1].append(limit)
    report.print_table(["network", "what", *PRECISIONS, "highest: at most"], rows)
    report.write(arguments.out, {"device": device.device_kind, "differences": figures})
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""Compares our networks with diffusers' UNet2DModel loaded from our export, on random weights, in float32.

Reported is max|ours - theirs| / max|theirs| of the network's output, and of an image that ten DDIM steps make of the
same noise: those of their scheduler, read from our export too, and of our sampler. The exit status is 1 if the first is
above 1e-5 or the second above 1e-4.

  PYTHONPATH=benchmarks python benchmarks/parity/exported.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

import diffusion_jax as dj
from diffusion_jax.interchange import diffusers_export
from diffusion_jax.models.networks import UNet, as_functions, count_parameters, preset

STEPS = 10
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "ddpm, CIFAR-10": (32, preset("ddpm")),
    "iddpm-like, one head": (
        32,
        preset("iddpm") | dict(num_heads=None, attention_resolutions=(16,)),
    ),
    "adm-like, classes": (
        32,
        preset("adm_64")
        | dict(channels=64, num_res_blocks=1, attention_resolutions=(16,), num_classes=10),
    ),
}
FIELDS: dict[str, Any] = {
    "process.name": "ddpm",
    "process.schedule": "linear",
    "process.num_timesteps": 1000,
    "process.beta_start": None,
    "process.beta_end": None,
    "process.prediction": "eps",
    "process.variance": "fixed_small",
    "sampler.clip": True,
}


def random_parameters(shapes: Any) -> Any:
    """Returns parameters none of which is zero."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            return (0.3 * rng.normal(size=leaf.shape) + 0.5).astype(np.float32)
        scale = np.sqrt(np.prod(leaf.shape[:-1]))
        return (rng.normal(size=leaf.shape) / scale).astype(np.float32)

    params = jax.tree.map(draw, shapes)
    # A network of large random outputs multiplies roundings in each step, as no trained one does.
    params["conv_out"] = jax.tree.map(lambda a: a / 8, params["conv_out"])
    return params


def compare(python: str, size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of one network."""
    shape = (size, size, 3)
    unet = UNet(**options)
    model = as_functions(unet, shape)
    params = random_parameters(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, *shape)).astype(np.float32), np.array([3, 700], np.float32)
    labels = np.array([0, 9], np.int32) if unet.num_classes else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        diffusers_export.write(folder, unet, shape, params, FIELDS)
        given = {} if labels is None else {"labels": labels}
        np.savez(folder / "given.npz", x=x.transpose(0, 3, 1, 2), t=t, **given)
        script = str(Path(__file__).with_name("exported_peer.py"))
        subprocess.run([python, script, str(folder), str(STEPS)], check=True)
        with np.load(folder / "theirs.npz") as stored:
            theirs = {name: stored[name].transpose(0, 2, 3, 1) for name in ("output", "images")}
    output = np.asarray(jax.jit(model.apply)(params, x, t, labels))
    process = dj.DDPM(dj.make_schedule("linear", 1000))
    denoise = dj.DiffusionModel(process, "eps", model.apply).denoiser(params, labels)
    sampler = dj.samplers.ddim(dj.make_grid(process, STEPS, "leading"))
    draw = jax.jit(
        lambda x: (
            dj.sample_loop(
                dj.clip_denoised(denoise, keep_eps=True),
                sampler,
                dj.image_keys(0, np.arange(2)),
                shape,
                x_init=x,
            ).images
        )
    )

    def difference(ours: Any, other: np.ndarray) -> float:
        return float(np.abs(np.asarray(ours) - other).max() / np.abs(other).max())

    return {
        "parameters": count_parameters(params),
        "output": difference(output, theirs["output"]),
        "images": difference(draw(x), theirs["images"]),
    }


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with torch and diffusers")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    figures = {
        name: compare(arguments.peer_python, size, options)
        for name, (size, options) in NETWORKS.items()
    }
    rows = [
        [name, f"{row['parameters']:,}", f"{row['output']:.1e}", f"{row['images']:.1e}"]
        for name, row in figures.items()
    ]
    report.print_table(["network", "parameters", "output", f"image of {STEPS} DDIM steps"], rows)
    report.write(arguments.out, figures)
    return int(any(row["output"] > 1e-5 or row["images"] > 1e-4 for row in figures.values()))


if __name__ == "__main__":
    sys.exit(main())

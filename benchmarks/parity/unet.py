"""Compares the U-Net's outputs with those of diffusers' UNet2DModel on the same random weights.

Float32, at the CIFAR-10 and the 256x256 setting of Ho et al. (2020). Weights, images and times are random, and no
layer is zero, so that every block shows in the output.
Reported is max|ours - theirs| / max|theirs|; the exit status is 1 if it is above 1e-5. torch and diffusers
live in an environment of their own, with the interpreter --peer_python. --write_fixture also runs a tiny
network and writes its weights, inputs and diffusers' output to the file that the tests compare with.

  PYTHONPATH=benchmarks python benchmarks/parity/unet.py --peer_python=/path/to/venv/bin/python
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report
from jaxtyping import Array
from unet_vs_diffusers import CIFAR10, Size

from diffusion_jax.models.networks import count_parameters

BENCHMARKS = Path(__file__).parents[1]
FIXTURE = BENCHMARKS.parent / "tests/models/networks/fixtures/unet_of_diffusers.npz"
TOLERANCE = 1e-5
SIZES = {
    "CIFAR-10": dataclasses.replace(CIFAR10, batch_size=4),
    "256x256": Size((256, 256, 3), 128, (1, 1, 2, 2, 4, 4), (16,), batch_size=1, groups=32),
}
TINY = Size((8, 8, 3), 8, (1, 2), (4,), batch_size=2, groups=2, num_res_blocks=1)

LAYERS = {
    "time_proj": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
ENDS = {
    "norm_out": "conv_norm_out",
    "time_dense_0": "time_embedding.linear_1",
    "time_dense_1": "time_embedding.linear_2",
}
KINDS = {"res": "resnets", "attention": "attentions"}


def diffusers_name(path: str, levels: int) -> str:
    """Returns diffusers' name of our parameter, such as "down_0_1_res/conv1/kernel".

    Args:
      path: Our names of module, layer and parameter.
      levels: Number of resolutions; diffusers counts those on the way up from the lowest one.
    """
    module, *layer, leaf = path.split("/")
    parts = module.split("_")
    if parts[0] == "middle":
        names = ["mid_block", KINDS[parts[2]], parts[1]]
    elif re.fullmatch(r"(down|up)_\d+_.*", module):
        level = int(parts[1]) if parts[0] == "down" else levels - 1 - int(parts[1])
        names = [f"{parts[0]}_blocks", str(level)]
        names += (
            [f"{parts[0]}samplers", "0"] if parts[2] == "resize" else [KINDS[parts[3]], parts[2]]
        )
    else:
        names = [ENDS.get(module, module)]
    names += [LAYERS.get(name, name) for name in layer]
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


def torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    """Returns a kernel in torch's order of axes: outputs, inputs, window."""
    if value.ndim == 2:
        return value.T[:, :, None, None] if "/shortcut/" in path else value.T
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def random_parameters(shapes: Any, rng: np.random.Generator) -> Any:
    """Draws every parameter, such that activations keep their size; numbers that float16 holds."""

    def draw(leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            value = 0.5 * rng.normal(size=leaf.shape) + 0.5
        else:
            value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return value.astype(np.float16).astype(np.float32)

    return jax.tree.map(draw, shapes)


def by_path(params: Any) -> dict[str, np.ndarray]:
    """Returns the parameters by their names, joined by slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


def theirs(python: str, size: Size, params: Any, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns the output of diffusers' network, from a process of its own."""
    weights: dict[str, Any] = {
        diffusers_name(path, len(size.channel_mult)): torch_layout(path, value)
        for path, value in by_path(params).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "given.npz"), Path(folder, "output.npy")
        np.savez(given, x=x.transpose(0, 3, 1, 2), t=t, **weights)
        script = str(Path(__file__).with_name("peer.py"))
        subprocess.run(
            [python, script, json.dumps(dataclasses.asdict(size)), str(given), str(output)],
            env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
            check=True,
        )
        return np.load(output).transpose(0, 2, 3, 1)


def compare(python: str, size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the figures of one network, and the arrays that went in and came out."""
    model = size.model()
    rng = np.random.default_rng(0)
    params = random_parameters(jax.eval_shape(model.init, jax.random.key(0)), rng)
    x = rng.normal(size=(size.batch_size, *size.image)).astype(np.float32)
    t = rng.integers(0, 1000, size.batch_size).astype(np.float32)
    ours: Array = jax.jit(model.apply)(params, x, t)
    other = theirs(python, size, params, x, t)
    error = float(np.abs(np.asarray(ours) - other).max() / np.abs(other).max())
    figures = {"parameters": count_parameters(params), "relative_difference": error}
    return figures, {"params": params, "x": x, "t": t, "output": other}


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", required=True, help="Python with torch and diffusers")
    parser.add_argument("--write_fixture", action="store_true", help=f"write {FIXTURE.name}")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    figures = {}
    if arguments.write_fixture:
        figures["tiny"], arrays = compare(arguments.peer_python, TINY)
        halves: dict[str, Any] = {
            path: leaf.astype(np.float16) for path, leaf in by_path(arrays.pop("params")).items()
        }
        FIXTURE.parent.mkdir(exist_ok=True)
        np.savez_compressed(FIXTURE, **arrays, **halves)
    for name, size in SIZES.items():
        figures[name], _ = compare(arguments.peer_python, size)
    rows = [[name, f"{row['parameters']:,}", f"{row['relative_difference']:.1e}"]
            for name, row in figures.items()]  # fmt: skip
    report.print_table(["network", "parameters", "largest difference / largest output"], rows)
    report.write(arguments.out, figures)
    return int(max(row["relative_difference"] for row in figures.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

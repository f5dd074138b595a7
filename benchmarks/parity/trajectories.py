"""Compares the images of imported runs with those of the libraries they come from, from the same x_T and noise.

For each case, a script of the library's own environment (trajectories_LIBRARY_peer.py) makes a small network with
random weights, writes a checkpoint, and draws images by the library's own loop and schedulers, at the times that these
choose and with our noise at each of them. The checkpoint is imported by `--mode=import`, and the run draws images as
its config says. Reported is the largest difference of the images, whose pixels are in [-1, 1]; the exit status is 1 if
one is above 1e-4. --write_fixture writes the images of the tiny networks to the file that tests compare with.

  PYTHONPATH=benchmarks python benchmarks/parity/trajectories.py --peer_python=/path/to/venv/bin/python [CASE ...]

--code=FOLDER holds a checkout of guided-diffusion.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report

from diffusion_jax import config as config_lib
from diffusion_jax.commands.import_checkpoint import import_checkpoint
from diffusion_jax.experiment.sampling import drawing, traced_options
from diffusion_jax.keys import image_normal
from diffusion_jax.runs import load_run
from diffusion_jax.samplers import first_noise, image_keys, sample_loop
from diffusion_jax.samplers.loop import step_keys

CASES = json.loads(Path(__file__).with_name("trajectories.json").read_text())
NETWORKS = Path(__file__).parents[2] / "tests/interchange/fixtures"
FIXTURE = NETWORKS / "trajectories.npz"
TOLERANCE = 1e-4
IMAGES = 2


def write_noise(case: dict[str, Any], path: Path) -> None:
    """Writes x_T, and the noise of a step that begins at each time of the chain, channels last."""
    shape = (case["size"], case["size"], 3)
    keys = image_keys(0, jnp.arange(IMAGES))
    noise = jax.jit(
        jax.vmap(lambda t: image_normal(step_keys(keys, t), shape))  # (T, b, H, W, C)
    )(jnp.arange(case.get("num_timesteps", 1000), dtype=jnp.float32))
    np.savez(path, x_T=first_noise(keys, shape), noise=noise)


def theirs(python: str, code: Path | None, case: dict[str, Any], folder: Path) -> np.ndarray:
    """Has the library write a checkpoint into a folder, and returns its images."""
    write_noise(case, folder / "noise.npz")
    if network := case.get("network"):
        shutil.copytree(NETWORKS / network, folder, dirs_exist_ok=True)
    script = Path(__file__).with_name(f"trajectories_{case['library']}_peer.py")
    asked = json.dumps({**case, "code": str(code), "batch": IMAGES})
    subprocess.run([python, str(script), asked, str(folder)], check=True)
    return np.load(folder / "images.npy")


def ours(case: dict[str, Any], folder: Path) -> np.ndarray:
    """Returns the images of a run that is imported from there."""
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch, "run")
        import_checkpoint(
            config_lib.default_config(),
            workdir,
            source=str(folder / case.get("file", "")),
            format=None,
            source_settings=case.get("settings", ""),
            assignments=[("sample.seed", "0"), *case.get("fields", {}).items()],
        )
        run = load_run(workdir)
    labels = jnp.arange(IMAGES) * 7 if run.num_classes else None

    def draw(params: Any) -> Any:
        traced = traced_options(run)
        parts = drawing(run, params, traced, jnp.arange(IMAGES), labels)
        return sample_loop(*parts, run.image_shape).images

    return np.asarray(jax.jit(draw)(run.params))


def main() -> int:
    """Prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--peer_python", required=True, help="Python with the peers")
    parser.add_argument("--code", type=Path, help="folder with checkouts of the peers' code")
    parser.add_argument("--write_fixture", action="store_true", help=f"write {FIXTURE.name}")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    figures, kept = {}, {}
    for name in arguments.cases or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            expected = theirs(arguments.peer_python, arguments.code, case, folder)
            images = ours(case, folder)
        if case.get("fixture"):
            kept[name] = expected
        inside = np.mean(np.abs(expected) < 1)
        figures[name] = {
            "largest_difference": float(np.abs(images - expected).max()),
            "mean_difference": float(np.abs(images - expected).mean()),
            "pixels_inside": float(inside),
        }
    if arguments.write_fixture:
        np.savez_compressed(FIXTURE, **kept)
    report.print_table(
        ["trajectory", "largest difference", "mean", "pixels that are not clipped"],
        [
            [
                name,
                f"{row['largest_difference']:.1e}",
                f"{row['mean_difference']:.1e}",
                f"{row['pixels_inside']:.0%}",
            ]
            for name, row in figures.items()
        ],
    )
    report.write(arguments.out, figures)
    return int(max(row["largest_difference"] for row in figures.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

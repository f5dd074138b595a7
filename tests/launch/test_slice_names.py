"""Names of slices mean to the launchers what they mean to `--mode=plan`."""

import subprocess
from pathlib import Path

from diffusion_jax.planning.chips import TOPOLOGIES
from diffusion_jax.planning.slices import cloud_size, slice_name

SLICES = Path(__file__).parents[2] / "launch" / "slices.sh"


def test_every_name_is_of_the_same_slice_in_the_launchers_and_in_plans():
    names = [
        name
        for generation, shapes in TOPOLOGIES.items()
        for shape in shapes
        for name in (f"{generation}:{shape}", f"{generation}-{cloud_size(generation, shape)}")
    ]
    names += [name.replace("v5e", "v5litepod") for name in names if "v5e" in name]
    script = f"source {SLICES}; for name; do find_slice $name; done"
    found = subprocess.run(
        ["bash", "-c", script, "-", *names], capture_output=True, text=True, check=True
    )
    for name, line in zip(names, found.stdout.splitlines(), strict=True):
        generation, shape, cloud = line.split()
        assert slice_name(name) == slice_name(cloud) == f"{generation}:{shape}"
        assert cloud.startswith("v5litepod-" if generation == "v5e" else generation)


def test_no_shape_is_missing():
    for generation, shapes in TOPOLOGIES.items():
        script = f"source {SLICES}; shapes_of {generation}"
        found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert tuple(found.stdout.split()) == shapes

"""The picture of a sweep."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.commands.sweep import _Row, _sweep_points
from diffusion_jax.reporting import sweep_plots


def rows(**axes: tuple[str, ...]) -> list[_Row]:
    names = {
        "steps": "sampler.num_steps",
        "scale": "sampler.guidance_scale",
        "name": "sampler.name",
    }
    points = [{}]
    for axis, values in axes.items():
        points = [{**point, names[axis]: value} for point in points for value in values]
    return [_Row(p, 40.0, {"fd_x": float(i + 1)}) for i, p in enumerate(points)]


def test_lines_run_along_the_evaluations_if_the_number_of_steps_varies() -> None:
    points, axis = _sweep_points(rows(steps=("5", "10"), scale=("1", "2")))
    assert axis == "network evaluations an image"
    assert {(p.line, p.label) for p in points} == {
        *(("guidance_scale=1", "num_steps=5"), ("guidance_scale=1", "num_steps=10")),
        *(("guidance_scale=2", "num_steps=5"), ("guidance_scale=2", "num_steps=10")),
    }


def test_lines_run_along_a_number_if_the_number_of_steps_does_not_vary() -> None:
    points, axis = _sweep_points(rows(name=("ddim", "unipc"), scale=("1", "2", "4"), steps=("20",)))
    assert axis == "guidance_scale" and [p.x for p in points] == [1, 2, 4, 1, 2, 4]
    assert {p.line for p in points} == {"name=ddim", "name=unipc"}


def test_names_alone_stand_beside_each_other(tmp_path: Path) -> None:
    points, axis = _sweep_points(rows(name=("ddim", "unipc")))
    assert axis == "network evaluations an image" and [p.x for p in points] == [40, 40]
    sweep_plots.save_sweep(tmp_path / "a.png", points, ["fd_x"], axis)
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).std() > 1


def test_labels_of_the_axis_do_not_overlap() -> None:
    assert sweep_plots._apart([5.0, 9.0, 10.0, 19.0, 20.0, 39.0, 50.0]) == [5, 9, 19, 39, 50]

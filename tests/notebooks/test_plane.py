"""The example in the plane: its true densities integrate to 1 and are those of its points, and it runs to the end."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location(
    "plane", Path(__file__).parents[2] / "notebooks" / "plane.py"
)
assert SPEC and SPEC.loader
plane = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plane)


@pytest.mark.parametrize("name", plane.DATA)
def test_the_true_density_integrates_to_1_and_gives_the_mean_of_its_points(name, rng):
    data, s, step = plane.DATA[name], 0.05, 0.04
    axis = np.arange(-2, 2, step)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = np.exp(data.log_density(grid, s))
    # Sums of a smooth function that vanishes at the ends converge faster than any power of the step.
    np.testing.assert_allclose(density.sum() * step**2, 1, rtol=1e-6)
    points = data.draw(rng, 20_000) + s * rng.normal(size=(20_000, 2))
    for power in (1, 2):
        exact = density @ grid**power * step**2
        error = 5 * (points**power).std(0) / np.sqrt(len(points))
        assert (np.abs((points**power).mean(0) - exact) < error).all()


@pytest.mark.slow
def test_it_trains_draws_scores_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(plane, "SIDE", 6)
    monkeypatch.setattr(plane, "TOLERANCE", 0.01)
    flags = [
        "--steps=100",
        "--batch_size=16",
        "--held_out=20",
        "--drawn=40",
        f"--picture={tmp_path / 'p.png'}",
    ]
    figures = plane.main(plane.parse([*flags, "--process=ve"]))
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["divergence"] > 0 and (tmp_path / "p.png").stat().st_size > 10_000

"""Plots of the bound are pictures, also of terms that are not finite or nearly 0."""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from diffusion_jax.reporting import bound_plots


def test_each_plot_is_a_picture_and_nothing_else_is_left(tmp_path: Path) -> None:
    time, terms = np.arange(9.0, -1.0, -1.0), np.geomspace(1e-6, 1, 10)
    terms[4] = np.nan
    bound_plots.save_terms(tmp_path / "terms.png", time, terms, 1e-9)
    bound_plots.save_terms(tmp_path / "none.png", time, np.full(10, np.nan), np.nan)
    rate = np.cumsum(terms)
    bound_plots.save_progress(
        tmp_path / "progress.png", np.arange(10.0), rate, np.linspace(60, 1, 10)
    )
    bound_plots.save_rate_distortion(tmp_path / "curve.png", rate, np.linspace(60, 1, 10))
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures == {"terms.png", "none.png", "progress.png", "curve.png"}
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300 and np.asarray(image).std() > 1


def test_a_single_known_step_and_a_small_prior_can_be_seen(tmp_path: Path) -> None:
    def pixels(name: str, color: str) -> int:
        with Image.open(tmp_path / name) as image:
            apart = np.asarray(image)[..., :3] / 255 - np.array(to_rgb(color))
        return int((np.abs(apart).max(-1) < 0.02).sum())

    alone = np.array([np.nan, 3.0, np.nan])
    bound_plots.save_progress(
        tmp_path / "progress.png", np.arange(3.0), alone, np.array([9.0, 2.0, 1.0])
    )
    assert pixels("progress.png", "tab:blue") > 9
    time, terms = np.array([2.0, 1.0, 0.0]), np.array([0.1, 0.4, 2.0])
    marks = []
    for prior in (1e-3, 1e-9):
        bound_plots.save_terms(tmp_path / "terms.png", time, terms, prior)
        marks.append(pixels("terms.png", "tab:green"))
    assert marks[0] > 1.7 * marks[1] > 9  # In the plot and in the legend, and there alone.


def test_terms_stand_from_t_0_on_the_left_to_noise_on_the_right(tmp_path: Path) -> None:
    time, terms = np.arange(99.0, -1.0, -1.0), np.geomspace(1e-4, 1, 100)
    bound_plots.save_terms(tmp_path / "terms.png", time, terms, 1e-4)
    with Image.open(tmp_path / "terms.png") as image:
        apart = np.abs(np.asarray(image)[..., :3] / 255 - np.array(to_rgb("tab:blue"))).max(-1)
    rows, columns = np.nonzero(apart < 0.02)
    left, right = columns < np.quantile(columns, 0.2), columns > np.quantile(columns, 0.8)
    height = apart.shape[0]
    assert rows[left].mean() < height / 3 and rows[right].max() > 2 * height / 3

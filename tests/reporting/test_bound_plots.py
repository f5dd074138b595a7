"""Plots of the bound are pictures, also of terms that are not finite or nearly 0."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.reporting import bound_plots


def test_each_plot_is_a_picture_and_nothing_else_is_left(tmp_path: Path) -> None:
    time, terms = np.arange(9.0, -1.0, -1.0), np.geomspace(1e-6, 1, 10)
    terms[4] = np.nan
    bound_plots.save_terms(tmp_path / "terms.png", time, terms, 1e-9)
    bound_plots.save_terms(tmp_path / "none.png", time, np.full(10, np.nan), np.nan)
    rate = np.cumsum(terms)
    bound_plots.save_progress(tmp_path / "progress.png", rate, np.linspace(60, 1, 10))
    bound_plots.save_rate_distortion(tmp_path / "curve.png", rate, np.linspace(60, 1, 10))
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures == {"terms.png", "none.png", "progress.png", "curve.png"}
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300 and np.asarray(image).std() > 1

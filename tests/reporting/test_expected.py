"""The curves that come with recipes: whose run has them, what is said of a run that leaves them, how they are drawn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from diffusion_jax import recipes
from diffusion_jax.config import load_file, recipe_hash
from diffusion_jax.reporting.expected import PATIENCE, Band, Expected, Watch, find
from diffusion_jax.reporting.pictures import save_loss_curve

STEPS = np.array([10.0, 20.0, 40.0, 80.0, 160.0, 320.0])
MIDDLE = 4.0 / np.sqrt(STEPS)
BAND = Band(STEPS, 0.9 * MIDDLE, MIDDLE, 1.1 * MIDDLE)
CURVES = Expected("digits", 3, 10, {"loss": BAND})


def rows(factor: float = 1.0, every: int = 10, last: int = 320) -> list[dict[str, Any]]:
    """A run whose losses are those expected times a factor."""
    steps = np.arange(every, last + 1, every)
    return [{"step": int(k), "loss": float(factor * 4.0 / np.sqrt(k))} for k in steps]


def expected_of(config: ConfigDict) -> Expected | None:
    return find(recipe_hash(config))


def said(run: list[dict[str, Any]], expected: Expected = CURVES) -> list[str]:
    """What is said of a run that is read row by row."""
    watch = Watch(expected)
    lines = [watch.read(run[: k + 1]) for k in range(len(run))]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of curves in the place of the package's own."""
    monkeypatch.setattr(recipes, "curves", lambda: sorted(tmp_path.glob("*.json")))
    return tmp_path


def content() -> dict[str, Any]:
    return json.loads(shipped("digits").read_text())


def shipped(recipe: str) -> Path:
    return Path(__file__).parents[2] / "configs" / "curves" / f"{recipe}.json"


@pytest.mark.parametrize("factor", [0.95, 1.0, 1.05])
def test_nothing_is_said_of_a_run_within_the_band(factor: float) -> None:
    assert said(rows(factor)) == []


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_run_outside_of_the_band_says_so_once_in_one_line(factor: float) -> None:
    (line,) = said(rows(factor))
    step = 10 * PATIENCE
    assert "\n" not in line and f"step {step}: " in line and "recipe digits" in line
    assert f"loss {factor * 4 / np.sqrt(step):.4g} " in line
    middle = 4 / np.sqrt(step)  # A power of the step, so that the interpolation is exact.
    assert f"{0.9 * middle:.4g} to {1.1 * middle:.4g}" in line


def test_rows_outside_count_only_in_a_row() -> None:
    run = rows()
    for k in range(len(run)):
        run[k]["loss"] *= 1.0 if k % PATIENCE == 0 else 1.3
    assert said(run) == []


def test_what_an_earlier_start_said_is_not_said_again() -> None:
    run = rows(1.2)
    watch = Watch(CURVES)
    assert watch.read(run[:10])
    assert watch.read(run) is None


def test_rows_without_a_loss_and_rows_past_the_curve_are_not_judged() -> None:
    measured = [{"step": row["step"], "eval_loss": 9.0} for row in rows()]
    assert said(measured) == []
    assert said([{"step": 320 + 10 * k, "loss": 99.0} for k in range(1, 20)]) == []


@pytest.mark.parametrize("every", [1, 3, 10, 40])
def test_the_band_fits_rows_of_any_number_of_steps(every: int, rng: np.random.Generator) -> None:
    """Rows of fewer steps are noisier, and those of more are means over a falling curve."""
    steps = np.arange(1, 321)
    mean_of_ten = 4.0 / np.sqrt(10 * np.ceil(steps / 10))
    losses = mean_of_ten * (1 + 0.1 * rng.standard_normal(320))
    means = losses[: 320 // every * every].reshape(-1, every).mean(axis=1)
    run = [{"step": every * (k + 1), "loss": float(mean)} for k, mean in enumerate(means)]
    assert said(run) == []
    assert len(said([{**row, "loss": 1.5 * row["loss"]} for row in run])) == 1


def test_each_file_is_that_of_its_recipe_and_small() -> None:
    for path in recipes.curves():
        config = copy.deepcopy(load_file(path.stem))
        assert (found := expected_of(config)) is not None, f"make {path} again"
        assert found.recipe == path.stem and found.runs >= 1
        assert "loss" in found.bands and found.bands["loss"].step[-1] <= config.train.num_steps
        assert path.stat().st_size < 10_000


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 7), ("train.num_steps", 5000), ("train.log_every", 7)]
)
def test_fields_that_leave_the_training_alone_leave_the_band(field: str, value: int) -> None:
    config = load_file("digits")
    config.update_from_flattened_dict({field: value})
    assert expected_of(config) is not None and config.to_dict() != load_file("digits").to_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.batch_size", 64), ("optimizer.learning_rate", 1e-3), ("model.channels", 64)],
)
def test_another_training_has_no_band(field: str, value: float) -> None:
    config = load_file("digits")
    config.update_from_flattened_dict({field: value})
    assert expected_of(config) is None


def test_a_decaying_learning_rate_ties_the_band_to_the_number_of_steps(folder: Path) -> None:
    config = load_file("digits")
    config.optimizer.decay = "cosine"
    (folder / "digits.json").write_text(
        json.dumps({**content(), "config_hash": recipe_hash(config)})
    )
    assert expected_of(config) is not None
    config.train.num_steps = 5000
    assert expected_of(config) is None


def damaged() -> dict[str, str]:
    whole = content()
    bands = whole["bands"]["loss"]
    texts = {
        "cut short": json.dumps(whole)[:500],
        "no text": "\x00\xff",
        "a list": "[1]",
        "no bands": {**whole, "bands": {}, "seeds": 3},
        "bands a list": {**whole, "bands": [1]},
        "a column short": {**whole, "bands": {"loss": {**bands, "low": bands["low"][1:]}}},
        "texts": {**whole, "bands": {"loss": {**bands, "low": ["x"] * len(bands["low"])}}},
        "upside down": {**whole, "bands": {"loss": {**bands, "low": bands["high"]}}},
        "steps in disorder": {**whole, "bands": {"loss": {**bands, "step": bands["step"][::-1]}}},
        "negative": {**whole, "bands": {"loss": {**bands, "low": [-1.0] * len(bands["low"])}}},
        "no hash": {"recipe": "digits"},
        "no rows": {**whole, "log_every": 0},
    }
    return {
        name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_damaged_file_is_a_warning_and_no_band(kind: str, folder: Path) -> None:
    (folder / "digits.json").write_text(damaged()[kind])
    with pytest.warns(UserWarning, match=r"digits\.json is damaged \(.+\)") as caught:
        assert expected_of(load_file("digits")) is None
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_a_folder_in_place_of_a_file_is_a_warning(folder: Path) -> None:
    (folder / "digits.json").mkdir()
    with pytest.warns(UserWarning, match="is a directory"):
        assert expected_of(load_file("digits")) is None


def test_the_loss_curve_shows_the_band_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (figures.append(self), Path(path).touch())
    )
    run = rows(last=160)
    save_loss_curve(tmp_path / "loss.png", run)
    save_loss_curve(tmp_path / "loss.png", run, CURVES)
    without, with_band = (figure.axes[0] for figure in figures)
    assert not without.collections and len(with_band.collections) == 1
    assert len(with_band.lines) == len(without.lines) + 1
    legend = with_band.get_legend()
    assert legend is not None
    assert "expected training loss (digits, 3 runs)" in [
        text.get_text() for text in legend.get_texts()
    ]
    # No further than the run.
    (path,) = with_band.collections[0].get_paths()
    assert np.asarray(path.vertices)[:, 0].max() == 160

"""`--mode=report` as a command: what it takes, refuses and leaves."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import run, write_config

from diffusion_jax.commands import report_pictures
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.report import drawn
from diffusion_jax.runs import load_run

sys.path.append(str(Path(__file__).parents[1] / "report"))
from run_folders import write_training


def test_the_command_writes_a_page_and_says_where_it_is(tmp_path: Path) -> None:
    workdir, other = write_training(tmp_path / "run"), write_training(tmp_path / "other")
    before = {path.name for path in workdir.iterdir()}
    outcome = run("--mode=report", f"--workdir={workdir}", f"--config.report.runs={other}")
    assert outcome.status == 0, outcome.err
    assert f"report {workdir / 'report.html'} (0." in outcome.err
    assert {path.name for path in workdir.iterdir()} - before == {"report.html"}


def arrays(workdir: Path, name: str) -> dict[str, np.ndarray]:
    return read_npz(workdir / "results" / "report" / f"{name}.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    outcome = run(f"--config={write_config(folder)}", f"--workdir={folder / 'run'}")
    assert outcome.status == 0, outcome.err
    return folder / "run"


def test_the_page_draws_the_reverse_process_and_finds_the_nearest_training_images(
    trained: Path,
) -> None:
    shutil.rmtree(trained / "results" / "report", ignore_errors=True)
    assert run("--mode=report", f"--workdir={trained}").status == 0
    moments, nearest = arrays(trained, "reverse"), arrays(trained, "nearest")
    assert moments["x_t"].shape == moments["x0_hat"].shape == (11, 8, 8, 8, 1)
    assert moments["t"].shape == (11,) and (np.diff(moments["t"]) < 0).all()
    assert (moments["x_t"][-1] == moments["x0_hat"][-1]).all() and moments["x_t"].dtype == np.uint8
    told = json.loads((trained / "results" / "report" / "reverse.json").read_text())
    assert told["decided_by"]["step"] == 12 and "jax" in told["provenance"]
    training = load_run(trained).load_split("train", labeled=False)
    pixels = training.read(np.arange(training.num_images))["image"].astype(np.float64)
    apart = np.sqrt(((pixels - nearest["images"][:, None]) ** 2).mean((2, 3, 4)))
    np.testing.assert_allclose(np.sort(apart, 1)[:, :4], nearest["rms"], rtol=1e-6)
    assert (nearest["neighbors"] == pixels[nearest["indices"]]).all()


def test_what_is_drawn_is_kept_until_what_decides_it_changes(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--mode=report", f"--workdir={trained}").status == 0
    before = arrays(trained, "reverse")
    assert run("--mode=report", f"--workdir={trained}", "--config.sample.seed=1").status == 0
    assert (arrays(trained, "reverse")["x_t"] != before["x_t"]).any()
    assert run("--mode=report", f"--workdir={trained}", "--config.sample.seed=0").status == 0
    assert (arrays(trained, "reverse")["x_t"] == before["x_t"]).all()
    monkeypatch.setattr(drawn, "keep", None)  # Nothing is written from here on.
    assert run("--mode=report", f"--workdir={trained}").status == 0
    outcome = run(
        "--mode=report", f"--workdir={trained}", "--config.sample.seed=1", "--config.report.draw=0"
    )
    assert outcome.status == 0, outcome.err


def test_what_cannot_be_drawn_is_named_and_the_rest_is_shown(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "run"
    shutil.copytree(trained, gone, ignore=shutil.ignore_patterns("checkpoints", "report*"))
    outcome = run("--mode=report", f"--workdir={gone}")
    assert outcome.status == 0 and "no images are drawn for the page: no checkpoint" in outcome.err
    monkeypatch.setattr(report_pictures, "MOST_BYTES", 1)
    shutil.copytree(trained / "checkpoints", gone / "checkpoints")
    outcome = run("--mode=report", f"--workdir={gone}")
    assert outcome.status == 0 and "too many to search" in outcome.err
    assert (gone / "results" / "report" / "reverse.npz").exists()
    assert not (gone / "results" / "report" / "nearest.npz").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    outcome = run("--mode=report", f"--workdir={tmp_path}")
    assert outcome.status == 2 and f"no trained run in {tmp_path}" in outcome.err
    workdir, empty = write_training(tmp_path / "run"), tmp_path / "empty"
    outcome = run("--mode=report", f"--workdir={workdir}", f"--config.report.runs={empty}")
    said = f"report.runs: no run in {empty} (there is neither config.json nor metrics.jsonl)"
    assert outcome.status == 2 and said in outcome.err and outcome.err.count("\n") == 1
    assert not (workdir / "report.html").exists()


def test_a_folder_in_the_pages_place_is_refused(tmp_path: Path) -> None:
    workdir = write_training(tmp_path / "run")
    (workdir / "report.html").mkdir()
    outcome = run("--mode=report", f"--workdir={workdir}")
    assert outcome.status == 2 and "report.html is not a file; move it away" in outcome.err

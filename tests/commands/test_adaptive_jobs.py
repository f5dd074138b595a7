"""Jobs with the adaptive sampler: what they cost, and that none passes for finished where the solver was cut short."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slow import slow_after
from tiny_run import digits_in, results, run, write_config

ADAPTIVE = (
    "--config.sampler.name=ode_adaptive",
    "--config.sampler.rtol=0.01",
    "--config.sampler.atol=0.01",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two steps in run/, whose own sampler would need more steps than it may take."""
    path = tmp_path_factory.mktemp("adaptive")
    config = write_config(
        path, 'config.sampler.name = "ode_adaptive"\nconfig.sampler.max_steps = 1'
    )
    with digits_in(path / "cache"):
        outcome = run(
            f"--config={config}", f"--workdir={path / 'run'}", "--config.train.num_steps=2"
        )
        assert outcome.status == 0, outcome.err
        (path / "said").write_text(outcome.err)
        yield path


def job(folder: Path, mode: str, *fields: str):
    return run(f"--workdir={folder / 'run'}", f"--mode={mode}", *ADAPTIVE, *fields)


@pytest.mark.slow
def test_training_goes_on_without_a_picture_that_the_solver_did_not_finish(folder: Path):
    assert "no samples at step 2: 4 of 4 reached sampler.max_steps" in (folder / "said").read_text()
    assert not list((folder / "run").glob("samples/*.png"))
    assert "grid" not in (folder / "said").read_text()
    assert results(folder / "run", "train")["step"] == 2


@pytest.mark.parametrize("mode", slow_after(1, ["sample", "inpaint", "interpolate"]))
def test_a_job_that_the_limit_of_steps_cut_short_is_refused_and_leaves_no_images(
    folder: Path, mode: str
):
    fields = {"inpaint": ["--config.edit.keep=coarse"], "interpolate": ["--config.edit.times=19"]}
    outcome = job(folder, mode, "--config.sampler.max_steps=2", *fields.get(mode, ()))
    assert outcome.status == 2, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    for part in ("4 of 4", "sampler.max_steps=2", "sampler.rtol=0.01", "sampler.atol=0.01"):
        assert part in line or mode == "interpolate" and part == "4 of 4", line
    assert "at t = " in line
    written = [*(folder / "run").glob("samples/*/*"), *(folder / "run").glob("edits/*/*")]
    assert not [path for path in written if path.suffix in (".npz", ".png", ".json")]
    assert not (folder / "run" / "results" / f"{mode}.json").exists()


def test_a_job_says_the_mean_and_the_most_evaluations_also_when_it_is_there_already(folder: Path):
    fields = ("--config.sampler.max_steps=500", "--config.sample.formats=npz")
    for drawn in (4, 0):
        outcome = job(folder, "sample", *fields)
        assert outcome.status == 0, outcome.err
        result = results(folder / "run", "sample")
        assert result["drawn_this_start"] == drawn
        nfe = result["nfe"]
        assert nfe["images"] == 4 and 10 < nfe["mean"] <= nfe["max"]
        path = folder / "run" / "samples" / result["job"]
        assert json.loads((path / "job.json").read_text())["nfe"] == nfe
        assert np.load(path / "images.npz")["images"].shape == (4, 8, 8, 1)

"""`--mode=import` on a tiny folder of diffusers: the run that it makes, and what it refuses."""

import json
from pathlib import Path

import pytest

from diffusion_jax.main import main

THEIRS = Path(__file__).parents[1] / "interchange/fixtures/diffusers_tiny"
FEW = ["--config.sample.num_images=2", "--config.sampler.num_steps=2"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Returns the workdir of an imported run."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    assert main(["--mode=import", f"--source={THEIRS}", f"--workdir={folder}"]) == 0
    return folder


def test_an_imported_run_says_where_it_comes_from_and_samples(workdir, capsys):
    record = json.loads((workdir / "results/import.json").read_text())
    assert record["format"] == "diffusers" and record["parameters"] == 45_259
    assert set(record["sha256"]) == {
        "config.json",
        "scheduler_config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert main(["--mode=sample", f"--workdir={workdir}", *FEW]) == 0
    assert len(list(workdir.glob("samples/*/grid.png"))) == 1


def test_what_needs_data_says_how_to_name_it(workdir, capsys):
    assert main(["--mode=evaluate", f"--workdir={workdir}", "--config.eval.num_images=2"]) == 2
    error = capsys.readouterr().err
    assert "imported without data; import it again" in error and error.count("\n") == 1


def test_a_workdir_with_something_in_it_is_refused(workdir, capsys):
    assert main(["--mode=import", f"--source={THEIRS}", f"--workdir={workdir}"]) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --source=PATH"),
        (["--source=/nowhere"], "there is no /nowhere"),
        ([f"--source={THEIRS}", "--format=pickle"], "'pickle'"),
        ([f"--source={THEIRS}", "--source_settings=x"], "diffusers says all of itself"),
        ([f"--source={THEIRS}", "--config=digits"], "--config is not for --mode=import"),
        ([f"--source={THEIRS}", "--config.data.nam=x"], "unknown config field 'data.nam'"),
        ([f"--source={THEIRS.parent.parent}"], "looks like no checkpoint"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_workdir(tmp_path, capsys, flags, message):
    workdir = tmp_path / "run"
    assert main(["--mode=import", f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not workdir.exists()


def test_flags_of_the_import_are_for_that_mode_alone(tmp_path, capsys):
    assert main(["--mode=sample", f"--workdir={tmp_path}", "--source=x"]) == 2
    assert "--source is for --mode=import, not --mode=sample" in capsys.readouterr().err

"""`--mode=export` of an imported run: each format there and back, the card, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.config import select
from diffusion_jax.experiment.exporting import export_sampler
from diffusion_jax.main import main
from diffusion_jax.runs import load_run

THEIRS = Path(__file__).parents[1] / "interchange/fixtures/diffusers_tiny_classes"
FEW = ["--config.sampler.num_steps=2", "--config.sampler.name=ddim"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Returns the workdir of an imported run with classes."""
    folder = tmp_path_factory.mktemp("imported") / "run"
    assert main(["--mode=import", f"--source={THEIRS}", f"--workdir={folder}"]) == 0
    return folder


def sampled(workdir: Path) -> np.ndarray:
    assert (
        main(["--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=3", *FEW]) == 0
    )
    (path,) = workdir.glob("samples/*/images.npz")
    with np.load(path) as stored:
        return stored["images"]


@pytest.fixture(scope="module")
def images(workdir) -> np.ndarray:
    return sampled(workdir)


@pytest.mark.parametrize("form", ["single", "diffusers"])
def test_an_export_that_is_imported_again_is_the_same_run(workdir, images, tmp_path, form):
    target, again = tmp_path / "model", tmp_path / "again"
    flags = ["--mode=export", f"--workdir={workdir}", f"--format={form}", f"--target={target}"]
    assert main(flags) == 0
    assert main(["--mode=import", f"--source={target}", f"--workdir={again}"]) == 0
    np.testing.assert_array_equal(sampled(again), images)
    assert load_run(again).num_classes == 3


def test_the_program_draws_the_same_images_in_a_process_with_jax_alone(workdir, images, tmp_path):
    target = tmp_path / "program"
    flags = ["--mode=export", f"--workdir={workdir}", "--format=stablehlo", f"--target={target}"]
    assert main([*flags, *FEW]) == 0
    script = (
        "import sys, jax, numpy as np\n"
        "sample = jax.export.deserialize(open(sys.argv[1], 'rb').read()).call\n"
        "for n in (3, 1):\n"
        "    i = np.arange(n, dtype=np.int32)\n"
        "    np.save(sys.argv[2] + str(n), sample(np.uint32(0), i, i))\n"
        "assert 'diffusion_jax' not in sys.modules\n"
    )
    program, out = str(target / "sampler.stablehlo"), str(tmp_path / "out")
    subprocess.run([sys.executable, "-I", "-c", script, program, out], check=True, cwd=tmp_path)
    # Another program of the same numbers: a gray level at most is rounded differently.
    for n in (3, 1):
        drawn = np.load(f"{out}{n}.npy").astype(int)
        assert np.abs(drawn - images[:n]).max() <= 1


@pytest.mark.parametrize("sampler", ["ode_adaptive", "dpmpp_3m", "heun"])
def test_samplers_of_each_kind_are_programs_for_any_number_of_images(workdir, sampler):
    run = load_run(workdir)
    select(run.config, "sampler.name", sampler)
    run.config.sampler.num_steps, run.config.sampler.spacing = 4, "karras"
    program = jax.export.deserialize(bytearray(export_sampler(run, run.params, ("cpu",))))
    (images,) = program.out_avals
    assert str(images.shape[0]) == "b" and images.shape[1:] == run.image_shape


def test_the_card_says_what_it_is_how_to_use_it_and_what_was_measured(workdir, images, tmp_path):
    result = {"fd": {"value": 12.5, "num_images": 10, "features": "lite0"}, "earlier": []}
    (workdir / "results/evaluate.json").write_text(json.dumps(result))
    target = tmp_path / "model"
    flags = ["--mode=export", f"--workdir={workdir}", "--format=diffusers", f"--target={target}"]
    assert main(flags) == 0
    card = (target / "README.md").read_text()
    for part in (
        "UNet2DModel.from_pretrained",
        "45,387 parameters",
        "| value | 12.5 |",
        "samples.png",
    ):
        assert part in card
    assert (target / "samples.png").exists()
    assert str(THEIRS.parent) not in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--mode=export needs --format, one of diffusers, single, stablehlo, and --target"),
        (["--format=onnx", "--target=x"], "onnx"),
        (["--format=single", "--target={workdir}"], "--target: {workdir} holds something already"),
        (["--format=single", "--target=x", "--source=y"], "--source is for --mode=import"),
    ],
)
def test_wrong_input_is_one_line(workdir, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(workdir=workdir) for flag in flags]
    assert main(["--mode=export", f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err
    assert message.format(workdir=workdir) in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()

"""Classifier guidance from the command line, on tiny networks of guided-diffusion: what changes and what is refused."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import config as config_lib
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, sampling
from diffusion_jax.experiment.classifier import load_classifier
from diffusion_jax.experiment.image_metrics import drawn_classes
from diffusion_jax.main import main
from diffusion_jax.processes.process import Point
from diffusion_jax.runs import load_run
from diffusion_jax.samplers import sample_loop

FIXTURES = Path(__file__).parents[1] / "interchange/fixtures"
CASES = json.loads((Path(__file__).parents[2] / "benchmarks/parity/networks.json").read_text())
CLASSIFIER, SETTINGS = FIXTURES / "classifier_tiny/model.pt", CASES["classifier_tiny"]["settings"]
GUIDED = [
    f"--config.sampler.classifier={CLASSIFIER}",
    f"--config.sampler.classifier_settings={SETTINGS}",
]
FEW = [
    "--config.sample.num_images=2",
    "--config.sampler.num_steps=3",
    "--config.sampler.name=ddim",
    "--config.sampler.spacing=uniform",
]


def imported(name: str, workdir: Path) -> Path:
    source = f"--source={FIXTURES / name / 'model.pt'}"
    flags = f"--source_settings={CASES[name]['settings']}"
    assert main(["--mode=import", source, flags, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Returns the workdir of an unconditional model, whose times are scaled by a quarter."""
    return imported("guided_tiny_heads", tmp_path_factory.mktemp("guided") / "run")


def drawn(workdir: Path, *more: str) -> tuple[np.ndarray, dict]:
    assert main(["--mode=sample", f"--workdir={workdir}", *FEW, *more]) == 0
    record = json.loads((workdir / "results/sample.json").read_text())
    with np.load(workdir / "samples" / record["job"] / "images.npz") as stored:
        return stored["images"].astype(int), record


def test_guidance_changes_the_samples_by_class_and_scale_and_its_results_say_so(workdir):
    plain, record = drawn(workdir)
    assert record["classes"] is None and record["sampler"]["classifier"] is None
    off, _ = drawn(workdir, *GUIDED, "--config.sampler.classifier_scale=0")
    np.testing.assert_array_equal(off, plain)
    guided, record = drawn(workdir, *GUIDED, "--config.sampler.classifier_scale=20")
    assert np.abs(guided - plain).max() > 5
    said = record["sampler"]
    assert said["classifier"] == str(CLASSIFIER) and said["classifier_scale"] == 20
    assert said["classifier_sha256"] == hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()
    assert [row["label"] for row in record["classes"]] == [0, 1]
    other, of_others = drawn(
        workdir, *GUIDED, "--config.sampler.classifier_scale=20", "--config.sample.labels=7"
    )
    assert np.abs(other - guided).max() > 2 and of_others["job"] != record["job"]


def test_a_job_is_named_by_the_classifiers_contents_not_by_its_path(workdir, tmp_path):
    copy = tmp_path / "other.pt"
    copy.write_bytes(CLASSIFIER.read_bytes())
    _, record = drawn(workdir, *GUIDED)
    _, copied = drawn(workdir, f"--config.sampler.classifier={copy}", GUIDED[1])
    _, same = drawn(workdir, *GUIDED, "--config.sampler.classifier_scale=1")
    assert record["job"] == copied["job"] == same["job"]


def test_an_edit_needs_the_classes_of_its_images(workdir, capsys):
    picture = workdir / "samples" / drawn(workdir)[1]["job"] / "grid.png"
    edit = ["--mode=inpaint", f"--workdir={workdir}", *FEW, *GUIDED, "--config.edit.keep=gray"]
    edit.append(f"--config.edit.images={picture}")
    assert main(edit) == 2
    assert "sample.labels is unset, but sampler.classifier needs" in capsys.readouterr().err
    assert main([*edit, "--config.sample.labels=3"]) == 0
    assert main(["--mode=interpolate", *edit[1:-2], edit[-1]]) == 2
    assert "sampler.classifier is set, but what lies between" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.sampler.classifier=/nowhere.pt"], "sampler.classifier: cannot read /nowhere"),
        ([GUIDED[0]], "it is of another network than its settings say"),
        (
            [GUIDED[0], f"{GUIDED[1]} --pool x"],
            "unknown flag --pool in sampler.classifier_settings",
        ),
        ([GUIDED[0], GUIDED[1].replace("size 16", "size 32")], "settings: attention_resolutions"),
        ([GUIDED[0], GUIDED[1].replace("width 32", "width 64")], "does not fit"),
        (
            [f"--config.sampler.classifier={FIXTURES / 'guided_tiny/model.pt'}", GUIDED[1]],
            "it has not out.2.c_proj.bias",
        ),
        ([f"--config.sampler.classifier={__file__}"], "weights are read from files named"),
        ([GUIDED[1]], "has no effect while sampler.classifier is unset"),
        (["--config.sampler.classifier_scale=2"], "has no effect while sampler.classifier"),
        ([*GUIDED, "--config.sample.labels=10"], "classes are numbers from 0 to 9"),
        ([*GUIDED, "--config.sample.labels=cat"], "sample.labels has 'cat'"),
    ],
)
def test_wrong_input_is_one_line(workdir, capsys, flags, message):
    assert main(["--mode=sample", f"--workdir={workdir}", *FEW, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_classifier_of_other_classes_than_the_models_is_refused(tmp_path, capsys):
    workdir = imported("guided_tiny", tmp_path / "run")
    capsys.readouterr()
    assert main(["--mode=sample", f"--workdir={workdir}", *FEW, *GUIDED]) == 2
    assert "knows 10 classes, but the model 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process.name": "vp"}, "it is for ddpm"),
        ({"process.zero_snr": True, "process.prediction": "v"}, "process.zero_snr is True"),
        ({"sampler.name": "ddim", "sampler.clip_keeps": "eps"}, "sampler.clip_keeps is 'eps'"),
    ],
)
def test_what_its_gradient_cannot_be_added_to_is_refused(fields, message):
    config = config_lib.default_config()
    for name, value in {**fields, "sampler.classifier": "x.pt"}.items():
        config_lib.select(config, name, value)
    with pytest.raises(InputError, match=message):
        build.validate(config)


def test_images_of_other_sizes_are_refused():
    with pytest.raises(InputError, match=r"for images of 16x16x3 .* but the run's are 32x32x3"):
        load_classifier(str(CLASSIFIER), SETTINGS, (32, 32, 3), 1.0)


def test_images_to_measure_have_random_classes_of_the_classifier(workdir):
    config = config_lib.default_config()
    config.sampler.update(classifier=str(CLASSIFIER), classifier_settings=SETTINGS)
    run = load_run(workdir, config=config)
    labels = drawn_classes(run, 500)
    assert labels is not None
    counts = np.bincount(labels, minlength=10)
    assert counts.sum() == 500 and counts.min() > 20 and len(counts) == 10
    assert run.names_to_draw == tuple(map(str, range(10)))


def test_samples_are_those_of_guided_diffusion(workdir):
    with np.load(CLASSIFIER.parent / "guided.npz") as stored:
        theirs = dict(stored)
    config = config_lib.default_config()
    config_lib.select(config, "sampler.name", "ddim")
    config.sampler.spacing = tuple(theirs["times"].tolist())

    def ours() -> np.ndarray:
        run = load_run(workdir, config=config)
        traced, x_t = sampling.traced_options(run), jnp.asarray(theirs["x_t"])

        @jax.jit
        def draw(params, traced):
            labels = jnp.asarray(theirs["labels"]) if run.label_classes else None
            parts = sampling.drawing(run, params, traced, jnp.arange(2), labels)
            return sample_loop(*parts, run.image_shape, x_init=x_t).images

        return np.asarray(draw(run.params, traced))

    # Ten steps of float32 networks: 2.4e-5 was seen, with and without guidance alike.
    np.testing.assert_allclose(ours(), theirs["plain"], atol=1e-4)
    config.sampler.update(classifier=str(CLASSIFIER), classifier_settings=SETTINGS)
    config.sampler.classifier_scale = float(theirs["scale"])
    np.testing.assert_allclose(ours(), theirs["guided"], atol=1e-4)
    assert np.abs(theirs["guided"] - theirs["plain"]).max() > 0.1


def test_the_gradient_is_the_slope_of_the_log_probability():
    classifier = load_classifier(str(CLASSIFIER), SETTINGS, (16, 16, 3), 0.25)
    with np.load(CLASSIFIER.parent / "io.npz") as stored:
        x, t, logits = stored["x"], stored["t"], stored["output"].astype(np.float64)
    labels, params = jnp.array([3, 8]), classifier.foreign.params
    # The classifier is given the scaled time.
    point = Point(jnp.asarray(4 * t), jnp.ones(2), jnp.ones(2))
    gradient = np.asarray(classifier.gradient(params, labels)(jnp.asarray(x), point))
    direction = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    h = 1e-2

    def log_probability(moved: np.ndarray) -> np.ndarray:
        from diffusion_jax.models.networks import as_functions

        model = as_functions(classifier.foreign.network, (16, 16, 3))
        out = np.asarray(jax.jit(model.apply)(params, moved, t), np.float64)
        return out[np.arange(2), labels] - np.log(np.exp(out).sum(1))

    slope = (log_probability(x + h * direction) - log_probability(x - h * direction)) / (2 * h)
    along = (gradient * direction).sum((1, 2, 3))
    assert np.abs(slope).min() > 0.01 and logits.shape == (2, 10)
    np.testing.assert_allclose(along, slope, rtol=2e-2, atol=2e-3)

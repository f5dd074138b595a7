"""`--mode=evaluate`: its figures are the library's, add up, and survive a kill; wrong input is named."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tiny_run import digits_in, environment, finish, results, run, start, write_config

import diffusion_jax
from diffusion_jax.data import Split, load, to_model_range
from diffusion_jax.experiment import build
from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.exact import bits_per_dim, dequantized_likelihood
from diffusion_jax.likelihood.vlb import variational_bound
from diffusion_jax.metrics import VariationalBits
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.runs.run import classes_moved

SAVEFIG = Figure.savefig
T = 20
FEW = ("--config.eval.num_images=40", "--config.eval.batch_size=16", "--config.mesh.data=1")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(
        tmp_path_factory.mktemp("config"),
        'config.model.num_classes = 10\nconfig.loss.name = "hybrid"\nconfig.process.variance = "learned"',
    )


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of a class-conditional perceptron with learned variances."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    outcome = run(f"--config={tiny}", f"--workdir={workdir}")
    assert outcome.status == 0, outcome.err
    return workdir


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluate(workdir: Path, *flags: str) -> dict[str, Any]:
    """Evaluates a run; returns what is filed under "bpd"."""
    outcome = run("--mode=evaluate", f"--workdir={workdir}", *FEW, *flags)
    assert outcome.status == 0, outcome.err
    return results(workdir, "evaluate")["bpd"]


def test_the_figures_are_those_of_the_library_and_add_up(copied: Path) -> None:
    filed = evaluate(copied)
    loaded = diffusion_jax.load_run(copied)
    batch = load("digits", "test").read(np.arange(40))
    denoise = loaded.model.denoiser(loaded.params, jnp.asarray(batch["label"]))
    keys = indexed(stream(0, "bound"), jnp.arange(40))
    x0 = to_model_range(jnp.asarray(batch["image"]))
    bound = jax.jit(
        lambda x0, keys: variational_bound(
            clip_denoised(denoise), make_grid(loaded.process), x0, keys, variance="learned"
        )
    )(x0, keys)
    for name, values in (
        ("total", bound.total),
        ("rate", bound.rate),
        ("prior", bound.prior),
        ("distortion", bound.distortion),
    ):
        # Sums in float32 there, in float64 here; batches of 16 there.
        np.testing.assert_allclose(filed[name]["value"], np.mean(values), rtol=1e-4)
        stderr = np.std(values, ddof=1) / np.sqrt(40)
        np.testing.assert_allclose(filed[name]["stderr"], stderr, rtol=1e-3)
    total = filed["rate"]["value"] + filed["distortion"]["value"]
    np.testing.assert_allclose(filed["total"]["value"], total, rtol=1e-12)
    assert filed["num_images"] == 40 and filed["nfe"] == T and filed["variance"] == "learned"
    assert filed["provenance"]["jax"] == jax.__version__ and filed["not_finite"] == {}


def test_arrays_and_plots_of_the_terms_lie_beside_the_figures(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", SAVEFIG)
    filed = evaluate(copied)
    (name, *_), folder = filed["files"], copied / "results"
    with np.load(folder / name, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["time"], np.arange(T - 1, -1, -1))
        for name in ("terms", "terms_stderr", "x0_mse", "eps_mse", "count", "rate", "rmse"):
            assert arrays[name].shape == (T,) and np.isfinite(arrays[name]).all(), name
        np.testing.assert_allclose(arrays["terms"][-1], filed["distortion"]["value"])
        # All but L_0 have been sent when the last step begins.
        np.testing.assert_allclose(arrays["rate"][-1], filed["rate"]["value"])
        np.testing.assert_allclose(arrays["rmse"][-1], filed["rmse"]["value"])
    assert {Path(name).name for name in filed["files"]} == {
        *("bpd.npz", "bpd_terms.png", "bpd_progress.png", "bpd_rate_distortion.png")
    }
    for name in filed["files"][1:]:
        with Image.open(folder / name) as image:
            assert np.asarray(image).std() > 1


@pytest.mark.slow
def test_options_reach_the_bound_and_the_figures_before_them_stay(copied: Path) -> None:
    whole = evaluate(copied)
    seen = {whole["total"]["value"]}
    for flag in (
        "eval.num_steps=5",
        "eval.spacing=0,4,11,19",
        "eval.variance=fixed_small",
        "eval.clip=false",
        "eval.approximate_cdf=true",
        "eval.num_terms=5",
        "eval.seed=1",
        "eval.split=train",
        "sample.ema=false",
        "sample.step=8",
    ):
        filed = evaluate(copied, f"--config.{flag}")
        assert filed["total"]["value"] not in seen, flag
        seen.add(filed["total"]["value"])
    record = results(copied, "evaluate")
    assert record["earlier"][-1]["bpd"]["total"] == whole["total"]
    assert len(record["earlier"]) == 10


ODE = ["--config.eval.metrics=ode_bpd", "--config.eval.num_images=5", "--config.eval.rtol=1e-3"]


@pytest.mark.slow
def test_exact_bits_are_those_of_the_library_whatever_the_batch_size(copied: Path) -> None:
    flags = ["--mode=evaluate", f"--workdir={copied}", *ODE, "--config.eval.num_dequantizations=2"]
    outcome = run(*flags, "--config.eval.batch_size=4", "--config.eval.num_probes=2")
    assert outcome.status == 0, outcome.err
    filed = results(copied, "evaluate")["ode_bpd"]
    loaded = diffusion_jax.load_run(copied)
    batch = load("digits", "test").read(np.arange(5))
    labels = jnp.asarray(batch["label"])
    denoise, grid = loaded.model.denoiser(loaded.params, labels), make_grid(loaded.process, 2)
    key = stream(0, "exact likelihood")

    @jax.jit
    def likelihood(k):
        keys = indexed(jax.random.fold_in(key, k), jnp.arange(5))
        images = to_model_range(jnp.asarray(batch["image"]))
        options = {"num_probes": 2, "rtol": 1e-3, "atol": 1e-5}
        return dequantized_likelihood(denoise, grid, loaded.process, images, keys, **options)

    runs = [likelihood(jnp.uint32(k)) for k in range(2)]
    bits = np.array([bits_per_dim(run.log_likelihood, 64) for run in runs])
    # Float rounding of other batch shapes can change a step of the solver, whose error is up to rtol.
    np.testing.assert_allclose(filed["total"]["value"], bits.mean(), rtol=1e-3)
    stderr = bits.mean(0).std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(filed["total"]["stderr"], stderr, rtol=1e-2)
    # Of two draws d apart the variance of the mean is d^2 / 4.
    of_estimator = np.sqrt(np.square(bits[0] - bits[1]).sum() / 4) / 5
    np.testing.assert_allclose(filed["stderr_of_estimator"], of_estimator, rtol=5e-2)
    assert filed["num_images"] == 5 and filed["nfe"] >= 7 and filed["num_probes"] == 2
    with np.load(copied / "results" / filed["files"][0], allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["bits"], bits.mean(0), rtol=1e-3)


def test_an_ode_that_reaches_its_limit_is_refused_with_where_it_was_and_files_nothing(
    copied: Path,
) -> None:
    flags = ["--mode=evaluate", f"--workdir={copied}", *ODE, "--config.eval.max_steps=2"]
    outcome = run(*flags)
    assert outcome.status == 2
    message = "eval.max_steps is 2: 5 of 5 solutions of the ODE had not reached the prior by then, the slowest std / "
    assert message in outcome.err and "eval.rtol=0.001 and eval.atol=1e-05" in outcome.err
    assert not (copied / "results" / "evaluate.json").exists()


@pytest.mark.parametrize(
    ("field", "metrics"),
    [
        ("num_probes=2", "bpd"),
        ("max_steps=9", "bpd"),
        ("num_terms=5", "ode_bpd"),
        ("clip=false", "ode_bpd"),
    ],
)
def test_a_field_of_another_metric_is_refused(copied: Path, field: str, metrics: str) -> None:
    flags = [f"--config.eval.metrics={metrics}", f"--config.eval.{field}"]
    outcome = run("--mode=evaluate", f"--workdir={copied}", *flags)
    assert outcome.status == 2
    name = field.partition("=")[0]
    assert f"config field eval.{name} decides nothing of eval.metrics=('{metrics}',)" in outcome.err


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was_whatever_the_batch_size(
    trained: Path, copied: Path
) -> None:
    whole = evaluate(trained)
    flags = ["--mode=evaluate", f"--workdir={copied}", *FEW]
    # Killed as it writes the second part.
    trap = """
import os, signal
from diffusion_jax.parallel.resumable import Batches
write, parts = Batches.write, []
def trapped(batches, arrays):
    parts.append(arrays)
    if len(parts) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(batches, arrays)
Batches.write = trapped
"""
    assert finish(start(flags, environment(), trap)).status == -9
    (folder,) = (copied / "results" / "bpd").iterdir()
    folder = folder / "parts"
    assert [path.name for path in folder.iterdir()] == ["00000000-00000015.npz"]
    filed = evaluate(copied, "--config.eval.batch_size=7")
    assert len(list(folder.iterdir())) == 5  # 16 images, and 24 in sevens.
    for name in ("total", "rate", "distortion", "rmse"):
        np.testing.assert_allclose(filed[name]["value"], whole[name]["value"], rtol=1e-5)


def test_terms_that_are_not_finite_are_filed_and_named_and_end_with_status_1(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: Callable[..., Any] = VariationalBits.bound

    def broken(*inputs: Any, **options: Any) -> Any:
        result = bound(*inputs, **options)
        bad = (result.steps == T - 1 - 7) | (result.steps == T - 1 - 3)
        return result._replace(terms=jnp.where(bad, jnp.nan, result.terms))

    monkeypatch.setattr(VariationalBits, "bound", broken)
    outcome = run("--mode=evaluate", f"--workdir={copied}", *FEW, "--config.eval.seed=5")
    assert outcome.status == 1
    assert "error: 80 terms of the bound are not finite, at t = 3, 7, so" in outcome.err
    filed = results(copied, "evaluate")["bpd"]
    assert filed["not_finite"] == {"7": 40, "3": 40}
    assert filed["total"] == {"value": None, "stderr": None}
    assert filed["distortion"]["value"] is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.eval.split=valid"], "eval.split is 'valid'; it must be one of test, train"),
        (["--config.eval.metrics=fid"], "eval.metrics is ('fid',); it must be"),
        (
            ["--config.eval.num_terms=21"],
            "eval.num_terms is 21; it must be an integer from 2 to 20",
        ),
        (
            ["--config.eval.num_steps=21"],
            "eval.num_steps is 21; it must be an integer from 1 to 20",
        ),
        (
            ["--config.process.num_timesteps=10"],
            "process.num_timesteps is fixed by the trained run",
        ),
        (["--config.sample.step=5"], "no checkpoint"),
        (["--config.eval.step=5"], "unknown config field 'eval.step'. It is now 'sample.step'"),
        (["--workdir=/nowhere"], "no trained run in /nowhere"),
    ],
)
def test_wrong_input_is_answered_in_one_line_with_status_2(
    trained: Path, flags: list[str], message: str
) -> None:
    outcome = run("--mode=evaluate", f"--workdir={trained}", *FEW, *flags)
    assert outcome.status == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_a_config_file_or_checkpoint_of_another_process_is_refused(
    copied: Path, tmp_path: Path, tiny: Path
) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        tiny.read_text().replace(
            "num_timesteps = 20", 'num_timesteps = 30\n    config.process.prediction = "v"'
        )
    )
    flags = ("--mode=evaluate", f"--workdir={copied}", *FEW)
    outcome = run(f"--config={other}", *flags)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert (
        "was trained with another process than the config says: process.prediction is 'eps', not 'v'; "
        "process.num_timesteps is 20, not 30" in outcome.err
    )
    other.write_text(tiny.read_text().replace('variance = "learned"', 'variance = "fixed_small"'))
    outcome = run(f"--config={other}", *flags)
    assert outcome.status == 2
    assert "process.variance is 'learned', not 'fixed_small'" in outcome.err
    saved = json.loads((copied / "config.json").read_text())
    saved["process"]["prediction"] = "x0"
    (copied / "config.json").write_text(json.dumps(saved))
    outcome = run(*flags)
    assert outcome.status == 2 and "checkpoint 12 was trained with another process" in outcome.err


@pytest.mark.slow
def test_learned_variances_are_refused_of_a_model_without_them(tmp_path: Path) -> None:
    tiny, workdir = write_config(tmp_path), tmp_path / "run"
    assert run(f"--config={tiny}", f"--workdir={workdir}", "--config.train.num_steps=4").status == 0
    outcome = run("--mode=evaluate", f"--workdir={workdir}", *FEW, "--config.eval.variance=learned")
    assert outcome.status == 2
    assert "eval.variance is 'learned', but the model has no channels for it" in outcome.err


def test_the_rate_of_sampled_terms_adds_up_to_the_figure_filed_also_where_few_were_drawn(
    copied: Path,
) -> None:
    filed = evaluate(copied, "--config.eval.num_terms=3", "--config.eval.num_images=4")
    with np.load(copied / "results" / filed["files"][0], allow_pickle=False) as arrays:
        assert (arrays["count"] == 0).any() and arrays["count"].sum() == 12
        np.testing.assert_array_equal(np.isnan(arrays["terms"]), arrays["count"] == 0)
        np.testing.assert_allclose(arrays["rate"][-1], filed["rate"]["value"], rtol=1e-6)
        assert (np.diff(arrays["rate"]) >= 0).all()


def test_the_line_printed_says_what_was_measured_and_a_short_chain_is_warned_of(
    copied: Path,
) -> None:
    flags = ("--mode=evaluate", f"--workdir={copied}", *FEW)
    outcome = run(*flags, "--config.eval.num_terms=5", "--config.eval.split=train")
    assert "of 40 train images, 5 of 20 terms each, variance learned, checkpoint 12" in outcome.err
    outcome = run(*flags, "--config.eval.num_steps=4", "--config.eval.variance=fixed_large")
    assert "the variance fixed_large is up to" in outcome.err
    assert "set --config.eval.variance=fixed_small" in outcome.err


def test_a_damaged_result_file_is_refused_before_anything_is_measured(copied: Path) -> None:
    (copied / "results" / "evaluate.json").write_text("{")
    before = set((copied / "results").rglob("*"))
    outcome = run("--mode=evaluate", f"--workdir={copied}", *FEW, "--config.eval.seed=7")
    assert outcome.status == 2 and "does not hold results; move it away" in outcome.err
    assert set((copied / "results").rglob("*")) == before


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits whose class 8 is called 9, and the other way round."""
    load = build.load_split

    def load_renamed(*arguments: Any) -> Split:
        names = ("0", "1", "2", "3", "4", "5", "6", "7", "9", "8")
        return dataclasses.replace(load(*arguments), class_names=names)

    monkeypatch.setattr(build, "load_split", load_renamed)


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=evaluate"],
        ["--mode=evaluate", "--config.eval.metrics=ode_bpd", "--config.eval.split=train"],
        ["--mode=inpaint", "--config.edit.keep=coarse"],
        ["--mode=interpolate"],
        ["--config.train.num_steps=13"],
    ],
    ids=" ".join,
)
def test_labels_that_have_come_to_mean_other_classes_are_refused_and_the_classes_named(
    tiny: Path, copied: Path, flags: list[str]
) -> None:
    config = [] if "--mode" in flags[0] else [f"--config={tiny}"]
    outcome = run(f"--workdir={copied}", *config, *flags)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert (
        "was trained with other classes than digits now has: class 8 was '8' and is '9'; class 9 was '9' and is '8'; "
        "rename them so that each has the same number as in training" in outcome.err
    )


@pytest.mark.usefixtures("renamed")
def test_classes_that_have_moved_matter_only_where_labels_of_the_data_are_used(
    tiny: Path, copied: Path
) -> None:
    flags = (
        "--config.sample.labels=3",
        "--config.sample.num_images=1",
        "--config.edit.keep=coarse",
    )
    assert run("--mode=inpaint", f"--workdir={copied}", *flags).status == 0
    outcome = run(
        *(f"--config={tiny}", f"--workdir={copied}", "--config.train.num_steps=13"),
        "--allow_config_change",
    )
    assert outcome.status == 0
    assert "warning: this run was trained with other classes than digits now has" in outcome.err


def test_folders_of_a_checkpoint_without_names_are_taken_to_be_numbered_by_their_letters() -> None:
    def split(*names: str) -> Split:
        return Split(1, (4, 4, 1), names, lambda _: {})  # pyright: ignore[reportArgumentType]

    numbered, named = split("1", "2", "10"), split("cat", "dog")
    moved = classes_moved((), numbered, "image_folder")
    assert moved is not None and "class 1 was '10' and is '2'" in moved
    assert classes_moved((), numbered, "tfds:numbers") is None
    assert classes_moved((), named, "image_folder") is None

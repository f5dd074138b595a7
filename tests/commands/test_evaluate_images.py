"""`--mode=evaluate` of images: drawn or given, against data, folders or files; provenance, restarts and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import chex
import numpy as np
import pytest
from PIL import Image
from tiny_features import features_of, register
from tiny_run import digits_in, results, run, write_config

from diffusion_jax.config import default_config
from diffusion_jax.data import load
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build, image_metrics, sampling
from diffusion_jax.experiment.image_metrics import drawn_classes
from diffusion_jax.features import FEATURES
from diffusion_jax.lifecycle import stopping
from diffusion_jax.metrics import frechet_distance
from diffusion_jax.parallel.resumable import Batches

METRICS = "--config.eval.metrics=fd,kid,is,pr,fd_inf,nearest"
FEATURES_FLAG = "--config.eval.features=mixed"
DRAWN = (FEATURES_FLAG, "--config.eval.num_images=30", "--config.eval.batch_size=16")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    register()
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder
    del FEATURES["mixed"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, which measures images while it trains."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny = write_config(tmp_path_factory.mktemp("config"))
    flags = ("train.num_steps=2", "train.metrics_every=1", "sampler.num_steps=3")
    flags = (*flags, "eval.metrics=fd,kid,bpd", "eval.num_terms=2")
    outcome = run(
        f"--config={tiny}", f"--workdir={folder}", *(f"--config.{flag}" for flag in flags), *DRAWN
    )
    assert outcome.status == 0, outcome.err
    return folder


def pixels(split: str) -> np.ndarray:
    images = load("digits", split)
    return images.read(np.arange(images.num_images))["image"]


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Twenty pictures each of other digits."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder, first in zip(folders, (0, 100), strict=True):
        folder.mkdir()
        for i, image in enumerate(pixels("train")[first : first + 20]):
            Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    return folders


def refused(*flags: str | Path) -> str:
    """Returns the one line that a command with wrong input prints last."""
    outcome = run("--mode=evaluate", *flags)
    assert outcome.status == 2, outcome.err
    return outcome.err.splitlines()[-1]


def test_samples_are_measured_as_by_hand_with_all_that_they_depend_on(workdir: Path) -> None:
    outcome = run("--mode=evaluate", f"--workdir={workdir}", METRICS, *DRAWN)
    assert outcome.status == 0, outcome.err
    filed = results(workdir, "evaluate")
    names = ("fd", "kid", "is", "pr", "fd_inf", "nearest")
    assert {f"{name}_mixed" for name in names} <= filed.keys()
    found = filed["fd_mixed"]
    with np.load(workdir / "samples" / found["images"]["job"] / "images.npz") as arrays:
        drawn = arrays["images"]
    assert len(drawn) == 30
    expected = frechet_distance(features_of(drawn), features_of(pixels("train")))
    assert found["value"] == pytest.approx(expected, rel=1e-4)  # Features are float32 there.
    assert found["features"] == {
        "name": "mixed",
        "weights_sha256": "f" * 64,
        "preprocessing": "none",
        "published": False,
    }
    assert found["reference"]["name"] == "train" and found["reference"]["num_images"] == 1438
    images = found["images"]
    assert (images["num_images"], images["step"], images["ema"], images["seed"]) == (30, 2, True, 0)
    assert images["nfe"] == 3 and images["sampler"]["guidance_scale"] is None
    assert "reference" not in filed["is_mixed"], "the score has none"
    assert set(filed["pr_mixed"]) >= {"precision", "recall", "density", "coverage"}
    picture = next(name for name in filed["nearest_mixed"]["files"] if name.endswith(".png"))
    assert (workdir / "results" / picture).exists()
    assert f"fd_mixed {found['value']:.5g} ±" in outcome.err


def test_training_logs_metrics_of_images_and_names_the_best_step(workdir: Path) -> None:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "eval_fd_mixed" in row]
    assert [row["step"] for row in measured] == [1, 2]
    assert all(row["eval_kid_mixed_stderr"] > 0 for row in measured)
    assert [row["step"] for row in rows if "eval_bpd" in row] == [1, 2]
    best = results(workdir, "train")["best"]
    values = [row["eval_fd_mixed"] for row in measured]
    assert best["eval_fd_mixed"] == {"step": 1 + int(np.argmin(values)), "value": min(values)}
    # The last step's are those of the command, whose images are the same.
    outcome = run("--mode=evaluate", f"--workdir={workdir}", "--config.eval.metrics=fd", *DRAWN)
    assert outcome.status == 0, outcome.err
    assert results(workdir, "evaluate")["fd_mixed"]["value"] == pytest.approx(values[-1], rel=1e-3)


def test_two_folders_are_compared_without_any_run(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, reference = two_folders
    flags = (f"--config.eval.images={images}", f"--config.eval.reference={reference}")
    outcome = run("--mode=evaluate", *flags, FEATURES_FLAG)
    assert outcome.status == 0, outcome.err
    found = results(tmp_path / "runs" / "evaluate", "evaluate")["fd_mixed"]
    train = features_of(pixels("train"))
    expected = frechet_distance(train[:20], train[100:120])
    assert found["value"] == pytest.approx(expected, rel=1e-4)
    assert found["images"]["path"] == str(images) and found["images"]["num_images"] == 20


def test_a_finished_job_a_file_and_given_statistics_are_measured_alike(
    workdir: Path, tmp_path: Path
) -> None:
    outcome = run("--mode=evaluate", f"--workdir={workdir}", "--config.eval.metrics=fd", *DRAWN)
    assert outcome.status == 0, outcome.err
    drawn = results(workdir, "evaluate")["fd_mixed"]
    job = workdir / "samples" / drawn["images"]["job"]
    rows = features_of(pixels("train"))
    np.savez(tmp_path / "ref.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    for images in (job, job / "images.npz"):
        flags = (f"--config.eval.images={images}", "--config.eval.metrics=fd")
        flags = (*flags, f"--config.eval.reference={tmp_path / 'ref.npz'}", FEATURES_FLAG)
        outcome = run("--mode=evaluate", f"--workdir={tmp_path / 'none'}", *flags)
        assert outcome.status == 0, outcome.err
        found = results(tmp_path / "none", "evaluate")["fd_mixed"]
        assert found["value"] == pytest.approx(drawn["value"], rel=1e-5)
        assert "does not say which features" in outcome.err


def test_a_killed_evaluation_goes_on_where_it_was(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the features of the samples, whose images are then not drawn again."""
    write = Batches.write

    def stopping_write(self: Batches, arrays: dict[str, np.ndarray]) -> None:
        write(self, arrays)
        if "features" in arrays:
            raise stopping.Stopped(15)

    flags = (f"--workdir={workdir}", "--config.eval.metrics=fd", "--config.sample.seed=5", *DRAWN)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "write", stopping_write)
        assert run("--mode=evaluate", *flags).status == 75
    computed: list[int] = []

    def counting_write(self: Batches, arrays: dict[str, np.ndarray]) -> None:
        assert "images" not in arrays, "images are not drawn again"
        computed.extend(arrays["indices"])
        write(self, arrays)

    monkeypatch.setattr(Batches, "write", counting_write)
    outcome = run("--mode=evaluate", *flags)
    assert outcome.status == 0, outcome.err
    assert computed == list(range(16, 30))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("eval.metrics=bpd,fd",), "bpd is measured of a trained run, and there is none"),
        (("eval.reference=train",), "need the train images of a run, but there is none"),
        (("eval.features=classifier",), "need the train images of a run, but there is none"),
        (("eval.features=inceptoin",), "Did you mean 'inception'?"),
        (("eval.num_images=5",), "5 images are too few for fd, which needs 6"),
        (("eval.kid_subsets=3",), "eval.kid_subsets decides nothing of eval.metrics=('fd',)"),
        (("sampler.num_steps=3",), "decides nothing while eval.images is"),
        (("eval.resize=clean",), "the features 'mixed' has none"),
        (("eval.reference=nowhere",), "eval.reference: there is no nowhere"),
        (("eval.selfcheck=true",), "leave out eval.images, or the check"),
    ],
)
def test_wrong_fields_for_given_images_get_one_line(
    two_folders: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    images, reference = two_folders
    given = ("eval.features=mixed", f"eval.images={images}", f"eval.reference={reference}")
    flags = (*given, *flags)
    workdir = f"--workdir={tmp_path / 'none'}"
    assert message in refused(workdir, *(f"--config.{flag}" for flag in flags))


def test_a_config_file_without_its_run_is_refused(
    two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Otherwise the data that it names would be taken for the reference's, or left out without a word."""
    flags = (f"--config={write_config(tmp_path)}", f"--config.eval.images={two_folders[0]}")
    said = refused(*flags, FEATURES_FLAG, f"--workdir={tmp_path / 'none'}")
    assert "describes a run, but there is none in" in said


def test_images_of_several_sizes_and_floats_are_refused(
    two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    images, reference = two_folders
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(images / "odd.png")
    flags = (
        f"--config.eval.reference={reference}",
        FEATURES_FLAG,
        f"--workdir={tmp_path / 'none'}",
    )
    said = refused(f"--config.eval.images={images}", *flags)
    assert "have several sizes (height x width: 20 of 8x8, 1 of 8x9" in said
    np.savez(tmp_path / "floats.npz", images=np.zeros((9, 8, 8, 1), np.float32))
    said = refused(f"--config.eval.images={tmp_path / 'floats.npz'}", *flags)
    assert "images have dtype float32; they must be integers" in said


def test_a_self_check_needs_no_run_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "images.npz", images=pixels("train")[:400])
    monkeypatch.chdir(tmp_path)
    flags = ("--config.eval.selfcheck=true", "--config.eval.metrics=fd,kid,fd_inf", FEATURES_FLAG)
    flags = (*flags, "--config.eval.reference=images.npz", "--config.eval.kid_subsets=1")
    outcome = run("--mode=evaluate", *flags)
    assert outcome.status == 0, outcome.err
    found = results(tmp_path / "runs" / "evaluate", "evaluate")["selfcheck_mixed"]
    assert found["passed"] is True and found["failures"] == [] == found["published"]
    assert found["num_images"] == 200 and found["reference"]["num_images"] == 400
    assert found["features"]["weights_sha256"] == "f" * 64
    assert abs(found["halves"]["kid"]["value"]) < 3 * found["halves"]["kid"]["stderr"]
    assert [level["amount"] for level in found["noise"]] == [5, 10, 20, 40, 80]
    (picture,) = found["files"]
    assert (tmp_path / "runs" / "evaluate" / "results" / picture).exists()
    said = outcome.err.splitlines()
    assert len([line for line in said if line.startswith(("noise", "blur"))]) == 9
    assert "passed" in said and "no published value of images.npz in these features" in said

    def unwanted(self: Batches, arrays: dict[str, np.ndarray]) -> None:
        raise AssertionError("features are not computed again")

    monkeypatch.setattr(Batches, "write", unwanted)
    assert run("--mode=evaluate", *flags, "--config.eval.kid_subsets=2").status == 0


@pytest.mark.slow
def test_a_self_check_of_features_that_see_no_blur_fails_with_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)  # No blur changes a flat image.
    levels = rng.integers(0, 256, (200, 1, 1, 1), dtype=np.uint8)
    np.savez(tmp_path / "flat.npz", images=np.tile(levels, (1, 8, 8, 1)))
    flags = ("--config.eval.selfcheck=true", "--config.eval.metrics=kid", FEATURES_FLAG)
    reference = f"--config.eval.reference={tmp_path / 'flat.npz'}"
    outcome = run("--mode=evaluate", f"--workdir={tmp_path / 'none'}", *flags, reference)
    assert outcome.status == 1
    said = outcome.err.splitlines()[-1]
    assert said.startswith("error: self-check of mixed: kid grows from") and "(blur 1) only" in said
    found = results(tmp_path / "none", "evaluate")["selfcheck_mixed"]
    assert found["passed"] is False and found["failures"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("eval.metrics=is,pr",), "eval.metrics is is, pr; add fd, kid or fd_inf"),
        (("eval.num_images=11",), "halves of 5 images are fewer than the 6 features of mixed"),
        (("eval.reference=train",), "need the train images of a run, but there is none"),
        (("sampler.num_steps=3",), "decides nothing while eval.selfcheck is set"),
        (("eval.selfcheck=false",), "no checkpoint in"),
        (("eval.sweep=sampler.num_steps=2,3",), "leave out eval.sweep, or the check"),
    ],
)
def test_wrong_fields_for_a_self_check_get_one_line(
    two_folders: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    given = ("eval.selfcheck=true", "eval.features=mixed", f"eval.reference={two_folders[0]}")
    flags = (*given, *flags)
    workdir = f"--workdir={tmp_path / 'none'}"
    assert message in refused(workdir, *(f"--config.{flag}" for flag in flags))


def test_statistics_alone_cannot_be_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6))
    flags = ("--config.eval.selfcheck=true", FEATURES_FLAG, f"--workdir={tmp_path / 'none'}")
    said = refused(*flags, f"--config.eval.reference={tmp_path / 'ref.npz'}")
    assert "statistics alone; name the images" in said


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"features": "inception"}, "have the features 'inception', not 'mixed'"),
        ({"features": "mixed", "preprocessing": "clean"}, "have the preprocessing 'clean'"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "of 5 features, but mixed has 6"),
    ],
)
def test_statistics_of_other_features_or_another_resize_are_refused(
    two_folders: tuple[Path, Path], tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "ref.npz", **{"mu": np.zeros(6), "sigma": np.eye(6), **arrays})
    flags = (f"--config.eval.images={two_folders[0]}", FEATURES_FLAG)
    flags = (*flags, f"--config.eval.reference={tmp_path / 'ref.npz'}")
    assert message in refused(*flags, f"--workdir={tmp_path / 'none'}")


SWEEP = "sampler.name=ddim,ancestral; sample.seed=0,1"


@pytest.mark.slow
def test_a_sweep_measures_every_combination_and_compiles_once_a_solver(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs for four points, since the seed is an argument."""
    traced = chex.assert_max_traces(sampling.sample_loop, n=2)
    monkeypatch.setattr(sampling, "sample_loop", traced)
    swept = ("--config.eval.metrics=fd,pr", f"--config.eval.sweep={SWEEP}", *DRAWN)
    outcome = run("--mode=evaluate", f"--workdir={workdir}", *swept)
    assert outcome.status == 0, outcome.err
    found = results(workdir, "sweep")
    table = found["table"]
    assert [(row["sampler.name"], row["nfe"], row["sample.seed"]) for row in table] == [
        (name, 3, seed) for name in ("ddim", "ancestral") for seed in "01"
    ]
    assert len({row["fd_mixed"] for row in table}) == 4
    assert all(row["precision_mixed_stderr"] is not None for row in table)
    least = min(table, key=lambda row: row["fd_mixed"])
    assert found["best"]["fd_mixed"].items() <= least.items()
    assert "| name | seed | nfe | fd_mixed |" in outcome.err
    assert all((workdir / "results" / name).exists() for name in found["files"])
    # A point of the sweep is what the command measures with its fields.
    flags = ("--config.sampler.name=ddim", *DRAWN)
    alone = run("--mode=evaluate", f"--workdir={workdir}", "--config.eval.metrics=fd", *flags)
    assert alone.status == 0, alone.err
    measured = results(workdir, "evaluate")["fd_mixed"]["value"]
    assert table[0]["fd_mixed"] == pytest.approx(measured, rel=1e-9)
    # A second start measures nothing.
    monkeypatch.setattr(Batches, "write", None)
    again = run("--mode=evaluate", f"--workdir={workdir}", *swept)
    assert again.status == 0, again.err
    assert results(workdir, "sweep")["table"] == table


@pytest.mark.parametrize(
    "flags, message",
    [
        (("eval.sweep=sampler.eta=0,1",), "eval.sweep: at eta=1: sampler.eta is 1.0, but"),
        (("eval.sweep=sampler.num_steps=2", "eval.metrics=bpd,fd"), "bpd depends on none of its"),
        (("eval.sweep=sampler.num_steps=2", "eval.images=x"), "leave eval.images unset"),
        (("eval.sweep=sample.ema=0.5",), "0.5"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_draws(
    workdir: Path, flags: tuple[str, ...], message: str
) -> None:
    given = ("--config.eval.metrics=fd", *(f"--config.{flag}" for flag in flags))
    assert message in refused(f"--workdir={workdir}", *DRAWN, *given)


def test_a_part_of_given_images_is_a_random_one_and_so_is_said(
    two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Sorted by name, the first ones of class folders would be of a few classes."""
    images, reference = two_folders
    flags = (f"--config.eval.images={images}", f"--config.eval.reference={reference}")
    flags = (*flags, FEATURES_FLAG, "--config.eval.num_images=9", f"--workdir={tmp_path / 'r'}")
    outcome = run("--mode=evaluate", *flags)
    assert outcome.status == 0, outcome.err
    found = results(tmp_path / "r", "evaluate")["fd_mixed"]
    assert (found["images"]["num_images"], found["images"]["of"]) == (9, 20)
    chosen = np.sort(np.random.default_rng(0).choice(20, 9, replace=False))
    train = features_of(pixels("train"))
    expected = frechet_distance(train[chosen], train[100:120])
    assert found["value"] == pytest.approx(expected, rel=1e-4)


def test_images_that_differ_anywhere_are_other_images(tmp_path: Path) -> None:
    """A hash of some would take them for those of a finished measurement, or of a kept reference."""
    images = pixels("train")[:1200]
    changed = images.copy()
    changed[1] = 0  # No image that `fingerprint` looks at.
    values = []
    for name, pixels_of in (("a", images), ("b", changed)):
        np.savez(tmp_path / f"{name}.npz", images=pixels_of)
        flags = (f"--config.eval.images={tmp_path / name}.npz", f"--workdir={tmp_path / 'r'}")
        flags = (*flags, f"--config.eval.reference={tmp_path / 'a.npz'}", FEATURES_FLAG)
        outcome = run("--mode=evaluate", *flags)
        assert outcome.status == 0, outcome.err
        assert ("are the same images" in outcome.err) == (name == "a")
        values.append(results(tmp_path / "r", "evaluate")["fd_mixed"]["value"])
    assert values[0] < 1e-9 < values[1]


def test_what_is_known_of_given_images_is_said(
    workdir: Path, two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """A job's own provenance; a reference of another shape; files that are passed over; transparency."""
    outcome = run("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=7")
    assert outcome.status == 0, outcome.err
    drawn = results(workdir, "sample")
    images, reference = two_folders
    (images / "notes.txt").write_text("x")
    for path in reference.iterdir():
        Image.open(path).convert("RGBA").save(path)
    flags = (FEATURES_FLAG, f"--workdir={tmp_path / 'r'}", f"--config.eval.reference={images}")
    job = workdir / "samples" / drawn["job"]
    outcome = run("--mode=evaluate", *flags, f"--config.eval.images={job}")
    assert outcome.status == 0, outcome.err
    said = results(tmp_path / "r", "evaluate")["fd_mixed"]["images"]
    assert said.items() >= {name: drawn[name] for name in ("job", "step", "ema", "nfe")}.items()
    assert "passed over: .txt files: 1 (notes.txt)" in outcome.err
    flags = (f"--config.eval.images={reference}", *flags)
    outcome = run("--mode=evaluate", *flags, "--config.eval.metrics=fd")
    assert "20 images have transparency; it is laid over white" in outcome.err
    assert "8x8x3 (height, width, channels), but the reference is 8x8x1" in outcome.err


def test_classes_of_drawn_images_are_random_with_the_shares_of_the_training_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Independent draws, as standard errors take them to be, and more of them begin with the same ones."""
    config = default_config()
    config.model.num_classes = 10
    config.model.channels, config.model.channel_mult = 32, (1,)
    config.model.attention_resolutions = ()
    experiment = build.build(config, (8, 8, 1), 10)
    many = drawn_classes(experiment, 20_000)
    assert many is not None and drawn_classes(experiment, 50) == many[:50]
    counts = load("digits", "train").class_counts
    assert counts is not None
    shares = np.bincount(many, minlength=10) / len(many)
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts), atol=0.01)
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="equally often, since gone"),
    ):
        patch.setattr(image_metrics, "load_split", Mock(side_effect=InputError("gone")))
        equal = drawn_classes(experiment, 20_000)
    np.testing.assert_allclose(np.bincount(equal or (), minlength=10) / 20_000, 0.1, atol=0.01)
    config.sample.labels = (3, 4)
    assert drawn_classes(build.build(config, (8, 8, 1), 10), 5) == (3, 4)
    config.sample.labels, config.model.num_classes = None, 0
    assert drawn_classes(build.build(config, (8, 8, 1), 10), 5) is None


@pytest.mark.parametrize(
    "path, message",
    [
        ("a.npy", "is neither a folder nor an .npz file; np.savez(FILE, images=ARRAY)"),
        ("none", "eval.images: there is no"),
    ],
)
def test_a_path_that_holds_no_images_is_named(tmp_path: Path, path: str, message: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8, 1), np.uint8))
    flags = (f"--config.eval.images={tmp_path / path}", "--config.eval.metrics=is", FEATURES_FLAG)
    assert message in refused(*flags, f"--workdir={tmp_path / 'r'}")


def test_too_few_images_are_refused_before_anything_is_computed(workdir: Path) -> None:
    flags = (f"--workdir={workdir}", "--config.eval.metrics=fd", FEATURES_FLAG)
    outcome = run("--mode=evaluate", *flags, "--config.eval.num_images=5")
    assert outcome.status == 2, outcome.err
    assert "eval.num_images: 5 images are too few for fd, which needs 6" in outcome.err
    assert "features of train" not in outcome.err


def test_the_name_fid_is_refused_as_a_metric_with_those_that_there_are(tmp_path: Path) -> None:
    flags = ("--config.eval.images=x", "--config.eval.metrics=fid")
    assert "Did you mean 'fd'?" in refused(*flags, f"--workdir={tmp_path / 'r'}")

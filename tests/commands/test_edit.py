"""`--mode=inpaint` and `--mode=interpolate` on a run of seconds: what they keep, write and refuse."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import Outcome, digits_in, results, run, write_config

from diffusion_jax.commands import interpolate
from diffusion_jax.data import load
from diffusion_jax.parallel.resumable import Arrays, Batches

# Of the cosine schedule with T = 20, the first step has a standard deviation of 0.09, 11.5 gray levels: five of them.
NOISE = 57
MORE = "config.model.num_classes = 10\nconfig.train.num_steps = 4\n"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run of which label dropout is a part."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, MORE + "config.train.label_dropout = 0.1")
    outcome = run(f"--config={config}", f"--workdir={folder / 'run'}")
    assert outcome.status == 0, outcome.err
    return folder / "run"


@pytest.fixture
def edit(trained: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a mode on a copy of the run, tmp_path/run."""
    shutil.copytree(trained, tmp_path / "run")

    def edit(mode: str, *fields: str) -> Outcome:
        flags = [f"--config.{field}" for field in fields]
        return run(f"--mode={mode}", f"--workdir={tmp_path / 'run'}", *flags)

    return edit


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def half_mask(folder: Path) -> Path:
    """Keeps the left half."""
    return save(
        folder / "mask.png", np.arange(8).repeat(8).reshape(8, 8).T.astype(np.uint8) // 4 * 255
    )


@contextlib.contextmanager
def killed_before(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """Interrupts a command as it is about to keep the batch after so many."""
    write, kept = Batches.write, []

    def killed(batches: Batches, arrays: Arrays) -> None:
        if len(kept) == count:
            raise KeyboardInterrupt
        kept.append(arrays)
        write(batches, arrays)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Batches, "write", killed)
        yield


def job(workdir: Path, mode: str) -> tuple[dict[str, Any], Path]:
    result = results(workdir, mode)
    return result, workdir / "edits" / result["job"]


def test_inpainting_keeps_the_black_pixels_of_its_mask_and_survives_a_kill(
    edit: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = half_mask(tmp_path)
    fields = (f"edit.mask={mask}", "sample.num_images=5", "sample.batch_size=2")
    fields = (*fields, "edit.resamplings=2", "edit.jump=4", "sampler.num_steps=10")
    fields = (*fields, "sampler.variance=fixed_small")
    with killed_before(monkeypatch, 1):
        edit("inpaint", *fields)
    outcome = edit("inpaint", *fields)
    assert outcome.status == 0, outcome.err
    result, folder = job(tmp_path / "run", "inpaint")
    assert result["drawn_this_start"] == 3 and result["nfe"] == 2 * 10
    given = load("digits", "test").read(np.arange(5))
    with np.load(folder / "images.npz") as arrays:
        images = arrays["images"]
        np.testing.assert_array_equal(arrays["labels"], given["label"])
    np.testing.assert_array_equal(images[:, :, :4], given["image"][:, :, :4])
    assert (images[:, :, 4:] != given["image"][:, :, 4:]).any()
    with Image.open(folder / "edit.png") as picture:
        shown = np.asarray(picture)
    side, label = 8 * 7 + 2, 64
    assert shown.shape == (3 * side + 2, label + 5 * side + 2)
    assert all((row[:, :label] < 100).any() for row in shown[2:].reshape(3, side, -1))  # Its name.
    cells = (
        shown[2:, label + 2 :].reshape(3, side, 5, side).transpose(0, 2, 1, 3)[..., :56:7, :56:7]
    )
    np.testing.assert_array_equal(cells[0], given["image"][..., 0])
    np.testing.assert_array_equal(cells[1][..., :4], given["image"][:, :, :4, 0])
    assert (cells[1][..., 4:] == 128).all()
    np.testing.assert_array_equal(cells[2], images[..., 0])


def test_files_and_folders_are_edited_from_a_chosen_time_on_and_enlarged(
    edit: Callable[..., Outcome], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    pixels = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        save(folder / f"{name}.png", image)
    large = save(tmp_path / "large.png", np.full((40, 30, 3), 77, np.uint8))
    start = ("edit.keep=nothing", "edit.start_t=0", f"edit.images={folder},{large}")
    assert edit("inpaint", *start, "sample.formats=npz").status == 0
    result, edited = job(tmp_path / "run", "inpaint")
    # From t = 0 there is one step, and a network hardly trained leaves the noise in the image.
    assert result["num_images"] == 3 and result["nfe"] == 1 and result["edit"]["start"] == 19
    with np.load(edited / "images.npz") as arrays:
        np.testing.assert_allclose(arrays["images"][:2, ..., 0], pixels, atol=NOISE)
        np.testing.assert_allclose(arrays["images"][2], 77, atol=NOISE)
        assert "labels" not in arrays  # None has a class.
    fields = ("edit.keep=coarse", "edit.factor=2", f"edit.images={folder}", "sample.labels=7")
    assert edit("inpaint", *fields).status == 0
    again, other = job(tmp_path / "run", "inpaint")
    assert other != edited and again["files"] == ["png", "images.npz"] and again["nfe"] == 20


@pytest.mark.slow
def test_colored_images_keep_their_gray_values_which_the_picture_shows_as_gray(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for i in range(6):
        save(folder / f"{i}.png", rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    fields = "\n".join(
        f"config.{field}"
        for field in (
            *("data.name = 'image_folder'", f"data.source_dir = {str(folder)!r}"),
            *("data.image_size = 4", "train.num_steps = 1"),
        )
    )
    workdir = tmp_path / "run"
    assert run(f"--config={write_config(tmp_path, fields)}", f"--workdir={workdir}").status == 0
    flags = ("--config.edit.keep=gray", f"--config.edit.images={folder}")
    assert run("--mode=inpaint", f"--workdir={workdir}", *flags).status == 0
    _, edited = job(workdir, "inpaint")
    factor, n = 56 // 4, 6
    with Image.open(edited / "edit.png") as picture:
        cells = np.asarray(picture)[2:, 64 + 2 :].reshape(3, 58, n, 58, 3).swapaxes(1, 2)
    _, kept, _ = cells[:, :, :56:factor, :56:factor].astype(int)
    gray = []
    for i in range(n):
        with Image.open(folder / f"{i}.png") as image:
            gray.append(np.asarray(image.convert("L"), int))
    # Pillow rounds gray values its own way, so by up to one level.
    np.testing.assert_allclose(kept, np.stack(gray)[..., None].repeat(3, -1), atol=1)


def test_interpolations_have_rows_for_times_and_latents_and_columns_from_one_image_to_the_other(
    edit: Callable[..., Outcome], tmp_path: Path
) -> None:
    fields = ("sampler.name=ddim", "edit.latents=true", "edit.iterations=1", "sample.num_images=5")
    fields = (*fields, "edit.times=19,9,0", "edit.num_between=3", "sample.batch_size=4")
    outcome = edit("interpolate", *fields)
    assert outcome.status == 0, outcome.err
    assert "in pairs; the last of 5 is left out" in outcome.err
    result, folder = job(tmp_path / "run", "interpolate")
    assert result["num_pairs"] == 2
    assert result["nfe"] == {"t = 19": 20, "t = 9": 10, "t = 0": 1, "latents": 20 * 2 + 20}
    with np.load(folder / "interpolation.npz") as arrays:
        images, given = arrays["images"].astype(int), arrays["given"].astype(int)
        assert arrays["rows"].tolist() == ["t = 19", "t = 9", "t = 0", "latents"]
        np.testing.assert_allclose(arrays["fraction"], np.linspace(0, 1, 5))
    np.testing.assert_array_equal(
        given, load("digits", "test").read(np.arange(4))["image"].reshape(2, 2, 8, 8, 1)
    )
    assert images.shape == (2, 4, 5, 8, 8, 1)
    # With next to no noise the ends are the images, and the middle is their mean.
    np.testing.assert_allclose(images[:, 2, 0], given[:, 0], atol=NOISE)
    np.testing.assert_allclose(images[:, 2, 4], given[:, 1], atol=NOISE)
    np.testing.assert_allclose(images[:, 2, 2], given.mean(1), atol=NOISE)
    # How well encoding is undone depends on the network (tests/samplers/test_ddim.py); which end is which does not.
    ends = images[:, 3, [0, 4]]
    away = np.abs(ends[:, :, None] - given[:, None]).mean((3, 4, 5))  # Pair, end, image.
    assert (away[:, [0, 1], [0, 1]] < 0.7 * away[:, [0, 1], [1, 0]]).all()
    side = 8 * 7 + 2
    with Image.open(folder / "interpolation.png") as picture:
        assert picture.size == (64 + 7 * side + 2, 2 * (4 * side + 2 + 18))


@pytest.mark.slow
def test_a_killed_interpolation_goes_on_where_it_was_and_ends_alike(
    edit: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("sampler.name=ddim", "sampler.num_steps=4", "edit.latents=true", "edit.num_between=1")
    fields = (*fields, "edit.iterations=1", "edit.times=19,0", "sample.num_images=4")
    fields = (*fields, "sample.batch_size=4")
    assert edit("interpolate", *fields).status == 0
    first, folder = job(tmp_path / "run", "interpolate")
    whole = dict(np.load(folder / "interpolation.npz"))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("interpolation.npz", "interpolation.png", "job.json")
    ]
    shutil.rmtree(folder)
    # A batch of encodings, two of the six images between latents, and two of those at t = 19.
    for kept, left in ((1, ["encoded"]), (1, ["encoded", "latents"]), (2, 3)):
        with killed_before(monkeypatch, kept):
            edit("interpolate", *fields)
        parts = sorted(path.name for path in (folder / "parts").iterdir())
        assert parts == left or len(parts) == left
    computed = []
    write = Batches.write
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "write", lambda b, a: (computed.append(a), write(b, a))[1])
        assert edit("interpolate", *fields).status == 0
    assert [part["indices"].tolist() for part in computed] == [[4, 5], [0, 1, 2, 3], [4, 5]]
    again, same = job(tmp_path / "run", "interpolate")
    assert same == folder and not (folder / "parts").exists()
    assert again["nfe"] == first["nfe"]
    with np.load(folder / "interpolation.npz") as arrays:
        assert arrays.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.slow
def test_the_ends_of_an_arc_between_latents_of_the_flow_are_the_given_images(
    edit: Callable[..., Outcome], tmp_path: Path
) -> None:
    fields = ("sampler.name=ode_adaptive", "edit.latents=true", "edit.times=0")
    outcome = edit("interpolate", *fields, "edit.num_between=1")
    assert outcome.status == 0, outcome.err
    result, folder = job(tmp_path / "run", "interpolate")
    # Each way is one evaluation and six a try, and there are several tries.
    assert result["nfe"]["latents"] > 2 * (1 + 6)
    with np.load(folder / "interpolation.npz") as arrays:
        images, given = arrays["images"][:, -1].astype(int), arrays["given"].astype(int)
        assert arrays["rows"][-1] == "latents"
    # A tolerance of 1e-5 is far below a gray level: only rounding is left.
    np.testing.assert_allclose(images[:, [0, 2]], given, atol=1)
    cooler = edit("interpolate", *fields, "edit.num_between=1", "sampler.temperature=0.5")
    assert cooler.status == 0, cooler.err
    with np.load(job(tmp_path / "run", "interpolate")[1] / "interpolation.npz") as arrays:
        assert np.abs(arrays["images"][:, -1].astype(int) - images).max() > 20


@pytest.mark.parametrize(
    ("mode", "fields", "message"),
    [
        ("inpaint", [], "edit.mask is unset; edit.keep=mask needs a gray PNG"),
        ("inpaint", ["edit.mask={none}"], "edit.mask: cannot read {none}: no such file"),
        ("inpaint", ["edit.mask={text}"], "edit.mask: cannot read {text}: not PNG, JPEG"),
        ("inpaint", ["edit.mask={wide}"], "{wide} has 9x8 pixels; the model's images have 8x8"),
        ("inpaint", ["edit.mask={rgb}"], "{rgb} has colors; it must be gray"),
        ("inpaint", ["edit.keep=gray"], "but the images have no colors"),
        ("inpaint", ["edit.keep=coarse", "edit.factor=3"], "edit.factor is 3; it must divide"),
        ("inpaint", ["edit.keep=coarse", "edit.mask={mask}"], "edit.keep=coarse has none"),
        ("inpaint", ["edit.keep=nothing"], "edit.start_t is unset"),
        (
            "inpaint",
            ["edit.keep=nothing", "edit.start_t=17", "sampler.name=ddim", "sampler.num_steps=3"],
            "edit.start_t is 17, and the nearest of the sampler's times is its first, 19, where all is noise",
        ),
        (
            "inpaint",
            ["edit.start_t=20", "edit.mask={mask}"],
            "edit.start_t is 20; it must be from 0 to 19",
        ),
        (
            "inpaint",
            ["edit.mask={mask}", "edit.jump=3"],
            "edit.jump is 3, but has no effect while edit.resamplings is 1",
        ),
        ("inpaint", ["edit.mask={mask}", "edit.images={text}"], "edit.images: cannot read {text}"),
        (
            "inpaint",
            ["edit.mask={mask}", "edit.images={empty}"],
            "edit.images: no images in {empty}",
        ),
        ("inpaint", ["edit.mask={mask}", "edit.images={long}"], "cannot read {long}: file name"),
        ("interpolate", ["edit.images={mask}"], "edit.images holds one image"),
        ("interpolate", ["edit.times=3,20"], "edit.times is (3, 20); it must hold distinct"),
        ("interpolate", ["edit.latents=true"], "edit.latents needs a sampler that can be inverted"),
        (
            "interpolate",
            ["edit.latents=true", "sampler.name=ddim", "sampler.eta=0.5"],
            "sampler.name is 'ddim', with eta 0.5",
        ),
        (
            "interpolate",
            ["edit.latents=true", "sampler.name=ode_adaptive", "edit.iterations=2"],
            "edit.iterations is 2, but the sampler 'ode_adaptive' has none",
        ),
        (
            "interpolate",
            ["edit.latents=true", "sampler.name=ode_adaptive", "sampler.num_steps=1"],
            "edit.latents needs two steps or more",
        ),
        (
            "interpolate",
            ["edit.latents=true", "sampler.name=ode_adaptive", "sampler.max_steps=2"],
            "4 of 4 images were not finished: the solver stopped at t = ",
        ),
        ("interpolate", ["sampler.temperature=0.5"], "temperature is 0.5, but edit.latents=false"),
        (
            "inpaint",
            ["edit.keep=nothing", "edit.start_t=9", "sampler.temperature=0.5"],
            "temperature is 0.5, but edit.start_t=9 has none",
        ),
        ("interpolate", ["edit.iterations=2"], "no effect while edit.latents is false"),
        ("interpolate", ["sample.labels=10"], "class numbers go from 0 to 9"),
    ],
)
def test_wrong_edits_are_refused_in_one_line(
    edit: Callable[..., Outcome], mode: str, fields: list[str], message: str, tmp_path: Path
) -> None:
    gray = np.zeros((8, 9), np.uint8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    paths = {
        "none": tmp_path / "none.png",
        "text": tmp_path / "text.png",
        "long": "x" * 300,
        "empty": tmp_path / "empty",
        "wide": save(tmp_path / "wide.png", gray),
        "rgb": save(tmp_path / "rgb.png", np.stack([gray[:, :8] + v for v in (200, 0, 0)], -1)),
        "mask": half_mask(tmp_path),
    }
    outcome = edit(mode, *(field.format(**paths) for field in fields))
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ") and message.format(**paths) in line


def test_interpolations_that_cannot_be_written_are_refused_before_they_are_drawn(
    edit: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpolate, "_mixed_at", None)  # It would fail.
    (tmp_path / "run" / "edits").write_text("no folder")
    outcome = edit("interpolate")
    assert outcome.status == 2 and "edits is not a folder; move it away" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def warnings_of(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if line.startswith("warning: ")]


def test_times_that_the_sampler_does_not_visit_and_guidance_without_classes_are_warned_of(
    edit: Callable[..., Outcome], tmp_path: Path
) -> None:
    fields = ("sampler.num_steps=3", "sampler.variance=fixed_small", "sample.formats=npz")
    image = f"edit.images={half_mask(tmp_path)}"
    start = ("edit.keep=nothing", "edit.start_t=8", "sampler.guidance_scale=3", image)
    assert warnings_of(edit("inpaint", *start, *fields)) == [
        "warning: sampler.guidance_scale is 3, but no class of edit.images is known, so nothing is guided; "
        "set sample.labels",
        "warning: edit.start_t: t = 8 is not on the sampler's grid; using the nearest times 10",
    ]
    assert warnings_of(edit("interpolate", "edit.times=0,9", *fields[:2])) == [
        "warning: edit.times: t = 9 is not on the sampler's grid; using the nearest times 10, 0"
    ]


@pytest.mark.slow
def test_a_model_that_needs_classes_asks_for_those_of_other_images(tmp_path: Path) -> None:
    config = write_config(tmp_path, MORE)
    assert run(f"--config={config}", f"--workdir={tmp_path / 'run'}").status == 0
    flags = (f"--workdir={tmp_path / 'run'}", f"--config.edit.mask={half_mask(tmp_path)}")
    flags = (*flags, "--mode=inpaint", f"--config.edit.images={half_mask(tmp_path)}")
    outcome = run(*flags)
    assert outcome.status == 2 and "sample.labels is unset, but the model needs" in outcome.err
    assert run(*flags, "--config.sample.labels=3", "--config.sampler.num_steps=2").status == 0

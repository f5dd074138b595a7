"""The command line end to end: a run leaves what is promised, and its checkpoints are sampled."""

import itertools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from slow import slow, slow_after
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tiny_run import checkpoint_steps, digits_in, results, rows, run, state_of, write_config

import diffusion_jax
from diffusion_jax import config as config_lib
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands.job import job_name
from diffusion_jax.data import load
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.experiment.sampling import own_prior_std
from diffusion_jax.parallel.resumable import Arrays, Batches
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.runs import Run


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache"), plots=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains the tiny config with these fields changed; returns the workdir."""
    tiny = write_config(tmp_path_factory.mktemp("config"))

    def train(*fields: str) -> Path:
        workdir = tmp_path_factory.mktemp("runs") / "run"
        flags = [f"--config.{field}" for field in fields]
        outcome = run(f"--config={tiny}", f"--workdir={workdir}", *flags)
        assert outcome.status == 0, outcome.err
        return workdir

    return train


@pytest.fixture(scope="module")
def unet(train: Callable[..., Path]) -> Path:
    """Twelve steps of a small U-Net on eight devices."""
    return train(
        *("model.name=unet", "model.channels=8", "model.channel_mult=1,2", "mesh.data=-1"),
        *("model.attention_resolutions=()", "train.eval_every=6", "train.sample_every=6"),
        *("eval.num_images=50", "eval.batch_size=40"),
    )


@pytest.fixture(scope="module")
def conditional(train: Callable[..., Path]) -> Path:
    """Twelve steps of a perceptron that is given labels."""
    return train("model.num_classes=10", "optimizer.learning_rate=0.01")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# What a training leaves


def test_config_json_is_the_whole_config(unet: Path) -> None:
    saved = json.loads((unet / "config.json").read_text())
    assert (
        dict(config_lib.fields(config_lib.from_dict(saved))).keys()
        == dict(config_lib.fields(config_lib.default_config())).keys()
    )
    assert saved["model"]["channel_mult"] == [1, 2] and saved["train"]["num_steps"] == 12
    # Beside it, what the numbers of the classes mean.
    assert [row["label"] for row in saved["classes"]] == list(range(10))
    assert saved["classes"][3]["name"] == "3" and saved["classes"][3]["num_images"] > 100


def test_metrics_have_a_row_per_logged_step_and_per_held_out_loss(unet: Path) -> None:
    trained = [row for row in rows(unet) if "loss" in row]
    held_out = [row for row in rows(unet) if "eval_loss" in row]
    assert [row["step"] for row in trained] == [3, 6, 9, 12]
    assert [row["step"] for row in held_out] == [6, 12]
    for row in trained:
        # The untrained output is 0, so the loss is the noise's power, 1, give or take its spread.
        assert 0.8 < row["loss"] < 1.2
        quartiles = [row[f"loss_q{i}"] for i in range(1, 5)]
        assert min(quartiles) < row["loss"] < max(quartiles)
        assert row["grad_norm"] > 0 and row["param_norm"] > 0
    assert all(0.8 < row["eval_loss"] < 1.2 for row in held_out)
    assert held_out[1]["eval_loss"] < held_out[0]["eval_loss"]


def events(workdir: Path) -> Iterator[Event]:
    """Reads TensorBoard's files: a length, its checksum, an event, its checksum, and so on."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += length + 16


def test_tensorboard_has_the_scalars_and_the_pictures(unet: Path) -> None:
    values = [(event.step, value) for event in events(unet) for value in event.summary.value]
    logged = {(step, v.tag): v.simple_value for step, v in values if v.HasField("simple_value")}
    for row in rows(unet):
        for name in row.keys() & {"loss", "loss_q1", "grad_norm", "eval_loss"}:
            assert logged[row["step"], name] == pytest.approx(row[name], rel=1e-6)  # float32
    drawn = {(step, value.tag) for step, value in values if value.HasField("image")}
    assert drawn == set(itertools.product((6, 12), ("grid", "strip")))


def test_checkpoints_pictures_and_the_loss_curve_are_there(unet: Path) -> None:
    assert checkpoint_steps(unet) == [4, 8, 12]
    side = 8 * 7 + 2  # 8 pixels, each drawn as 7, and a margin
    for step in (6, 12):
        grid = pixels(unet / "samples" / f"grid-{step:08}.png")
        strip = pixels(unet / "samples" / f"strip-{step:08}.png")
        assert grid.shape == (2 * side + 2, 2 * side + 2)
        assert strip.shape == (4 * 2 * side + 2, 11 * side + 2)
    assert pixels(unet / "loss.png").ndim == 3
    assert not list(unet.rglob("*.part"))


def test_train_json_has_the_figures_and_where_they_come_from(unet: Path) -> None:
    result = results(unet, "train")
    trained = [row for row in rows(unet) if "loss" in row]
    assert result["step"] == 12
    assert result["loss"] == trained[-1]["loss"]
    assert result["eval_loss"] == rows(unet)[-1]["eval_loss"]
    leaves = jax.tree.leaves(state_of(unet)["params"])
    assert result["parameters"] == sum(leaf.size for leaf in leaves)
    assert result["seconds_this_start"] > result["train_seconds"] > 0
    assert result["images_per_sec"] > 0 and result["sampling_seconds"] > 0
    saved = config_lib.from_dict(json.loads((unet / "config.json").read_text()))
    assert result["config_hash"] == config_lib.config_hash(saved)
    assert result["provenance"]["diffusion_jax"] == diffusion_jax.__version__
    assert result["provenance"]["device"] == "8 x cpu (cpu)"
    assert result["earlier"] == []


def test_the_averaged_parameters_trail_the_parameters(unet: Path) -> None:
    first, last = state_of(unet, 4), state_of(unet, 12)
    for average, start, end in zip(
        jax.tree.leaves(last["ema/default"]),
        jax.tree.leaves(first["params"]),
        jax.tree.leaves(last["params"]),
        strict=True,
    ):
        moved = float(abs(end - start).sum())
        assert 0 < float(abs(average - end).sum()) < moved or moved == 0


# Sampling


@pytest.fixture
def sample(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Samples a copy of a run with these fields; returns results/sample.json and the job's folder."""

    def sample(workdir: Path, *fields: str) -> tuple[dict[str, Any], Path]:
        copy = tmp_path / "run"
        shutil.copytree(workdir, copy, dirs_exist_ok=True)
        flags = [f"--config.{field}" for field in fields]
        outcome = run("--mode=sample", f"--workdir={copy}", *flags)
        assert outcome.status == 0, outcome.err
        result = results(copy, "sample")
        return result, copy / "samples" / result["job"]

    return sample


def images(folder: Path) -> np.ndarray:
    with np.load(folder / "images.npz") as arrays:
        return arrays["images"]


def test_samples_are_pngs_a_grid_an_npz_and_a_result(
    unet: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    result, folder = sample(unet, "sample.num_images=5", "sample.batch_size=3")
    drawn = images(folder)
    assert drawn.shape == (5, 8, 8, 1) and drawn.dtype == np.uint8
    assert sorted(path.name for path in folder.iterdir()) == [
        "grid.png",
        "images.npz",
        "job.json",
        "png",
    ]
    assert sorted(path.name for path in (folder / "png").iterdir()) == [
        f"{i:06}.png" for i in range(5)
    ]
    for i, image in enumerate(drawn):
        np.testing.assert_array_equal(pixels(folder / "png" / f"{i:06}.png"), image[..., 0])
    assert len({image.tobytes() for image in drawn}) == 5
    side = 8 * 7 + 2
    assert pixels(folder / "grid.png").shape == (2 * side + 2, 3 * side + 2)
    assert (result["num_images"], result["drawn_this_start"]) == (5, 5)
    assert (result["step"], result["ema"], result["nfe"]) == (12, True, 20)
    assert result["config_hash"] == results(unet, "train")["config_hash"]
    assert result["sampler"]["name"] == "ancestral"


@pytest.mark.slow
def test_an_image_does_not_depend_on_batch_size_devices_or_the_training_command(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    many = images(sample(conditional, "sample.num_images=6", "sample.batch_size=6")[1])
    few = images(
        sample(conditional, "sample.num_images=5", "sample.batch_size=2", "mesh.data=2")[1]
    )
    # Rounding in another program may move a pixel by one.
    np.testing.assert_allclose(few.astype(int), many[:5].astype(int), atol=1)
    grid = pixels(conditional / "samples" / "grid-00000012.png")
    corner = grid[2 : 2 + 56 : 7, 2 : 2 + 56 : 7]
    np.testing.assert_allclose(corner.astype(int), many[0, ..., 0].astype(int), atol=1)


def test_a_killed_job_keeps_its_finished_batches_and_draws_the_rest_even_at_another_batch_size(
    conditional: Path,
    sample: Callable[..., tuple[dict[str, Any], Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = ("sample.num_images=7", "sample.batch_size=2")
    _, folder = sample(conditional, *fields)
    drawn = images(folder)
    shutil.rmtree(folder)
    write = Batches.write

    def killed(batches: Batches, arrays: Arrays) -> None:
        if arrays["indices"][0] == 4:
            raise KeyboardInterrupt
        write(batches, arrays)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Batches, "write", killed)
        sample(conditional, *fields)
    assert [path.name for path in folder.iterdir()] == ["parts"]
    result, again = sample(conditional, *fields)
    assert again == folder and result["drawn_this_start"] == 3
    np.testing.assert_array_equal(images(folder), drawn)
    assert [earlier["drawn_this_start"] for earlier in result["earlier"]] == [7]

    shutil.rmtree(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Batches, "write", killed)
        sample(conditional, *fields)
    part = folder / "parts" / "00000002-00000003.npz"
    broken = bytearray(part.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    part.write_bytes(broken)
    result, _ = sample(conditional, "sample.num_images=7", "sample.batch_size=3")
    assert result["drawn_this_start"] == 5
    # Other shapes of the same products: rounding, so one level of 255.
    np.testing.assert_allclose(images(folder).astype(int), drawn, atol=1)
    result, _ = sample(conditional, *fields)
    assert result["drawn_this_start"] == 0


def test_a_job_has_the_formats_that_are_asked_for_and_its_array_record_can_be_trained_on(
    conditional: Path,
    sample: Callable[..., tuple[dict[str, Any], Path]],
    train: Callable[..., Path],
) -> None:
    fields = ("sample.num_images=20", "sampler.num_steps=2", "sample.batch_size=8")
    fields = (*fields, "sample.labels=3,5")  # Of ten classes.
    result, folder = sample(conditional, *fields, "sample.formats=array_record,npz")
    assert result["files"] == ["array_record", "images.npz"] and not (folder / "png").exists()
    drawn = images(folder)
    opened = load("tfds:images", "train", source_dir=str(folder / "array_record"))
    batch = opened.read(np.arange(20))
    np.testing.assert_array_equal(batch["image"], drawn)
    np.testing.assert_array_equal(batch["label"], [3, 5] * 10)
    assert opened.class_names == tuple("0123456789")
    (folder / "images.npz").unlink()  # Another format is made of what is there.
    result, _ = sample(conditional, *fields, "sample.formats=png")
    assert result["drawn_this_start"] == 0 and result["files"] == ["png"]
    for i, image in enumerate(drawn):
        np.testing.assert_array_equal(pixels(folder / "png" / f"{i:06}.png"), image[..., 0])


def test_sampling_needs_the_averaged_parameters_and_nothing_else_of_a_run(
    conditional: Path, tmp_path: Path
) -> None:
    def drawn(workdir: Path) -> np.ndarray:
        outcome = run("--mode=sample", f"--workdir={workdir}", "--config.sample.num_images=4")
        assert outcome.status == 0, outcome.err
        return images(workdir / "samples" / results(workdir, "sample")["job"])

    whole, bare = tmp_path / "whole", tmp_path / "bare"
    shutil.copytree(conditional, whole)
    kept = Path("checkpoints") / str(checkpoint_steps(conditional)[-1])
    for name in ("config.json", kept / "manifest.json", kept / "meta.json", kept / "ema"):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (conditional / name).is_dir() else shutil.copy
        copy(conditional / name, bare / name)
    np.testing.assert_array_equal(drawn(bare), drawn(whole))


def test_a_run_is_loaded_from_python_and_draws_what_the_command_draws(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    _, folder = sample(conditional, "sample.num_images=4", "sample.batch_size=4", "mesh.data=1")
    trained = diffusion_jax.load_run(conditional)
    assert trained.step == 12 and trained.image_shape == (8, 8, 1)
    denoise = trained.model.denoiser(trained.params, jnp.arange(4))
    sampler = diffusion_jax.ancestral(make_grid(trained.process))
    keys = diffusion_jax.image_keys(0, jnp.arange(4))
    denoise = diffusion_jax.clip_denoised(denoise)
    drawn = diffusion_jax.sample_loop(denoise, sampler, keys, trained.image_shape).images
    # Rounding in another program may move a pixel by one.
    found = np.asarray(diffusion_jax.data.to_uint8(drawn), int)
    np.testing.assert_allclose(found, images(folder).astype(int), atol=1)
    other = config_lib.from_dict(trained.config.to_dict())
    other.sample.labels, other.sample.seed = (3, "5"), 7
    plain = diffusion_jax.load_run(conditional, ema=False, step=4, config=other)
    assert plain.step == 4 and plain.config.sample.labels == (3, 5)
    assert (plain.config.sample.seed, plain.training_config.sample.seed) == (7, 0)
    with pytest.raises(InputError, match="no checkpoint in"):
        diffusion_jax.load_run(conditional / "nowhere")


def test_a_checkpoint_that_holds_no_names_of_classes_is_drawn_from_by_number(
    conditional: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meta(store: CheckpointStore, step: int | None = None) -> Any:
        found = whole(store, step)
        assert found is not None
        names = {"class_names", "class_counts"}
        return {**found, "data": {k: v for k, v in found["data"].items() if k not in names}}

    whole = CheckpointStore.meta
    monkeypatch.setattr(CheckpointStore, "meta", meta)
    old = diffusion_jax.load_run(conditional)
    assert old.class_names == () and old.names_to_draw == tuple("0123456789")
    config = config_lib.from_dict(old.config.to_dict())
    config.sample.labels = ("cat",)
    with pytest.raises(InputError, match="knows its 10 classes by number alone"):
        diffusion_jax.load_run(conditional, config=config)


def test_a_job_folder_says_what_the_job_is(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    fields = ("sample.labels=3,5", "sampler.num_steps=4", "sample.num_images=9")
    result, folder = sample(conditional, *fields)
    job = json.loads((folder / "job.json").read_text())
    assert job["labels"] == [3, 5] and job["nfe"] == 4 and job["sampler"]["num_steps"] == 4
    drawn = [{"label": i, "name": str(i), "num_images": n} for i, n in ((3, 5), (5, 4))]
    assert job["classes"] == drawn and job["num_images"] == 9
    assert job.items() <= result.items()


def test_labels_choose_the_class_and_default_to_all_in_turn(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    _, in_turn = sample(conditional, "sample.num_images=12")
    _, chosen = sample(conditional, "sample.num_images=12", "sample.labels=7,1")
    for folder, expected in ((in_turn, [*range(10), 0, 1]), (chosen, [7, 1] * 6)):
        with np.load(folder / "images.npz") as arrays:
            assert arrays["labels"].tolist() == expected
    # Images 1 and 11 are of class 1 either way; image 0 is not.
    one, other = images(in_turn).astype(int), images(chosen).astype(int)
    np.testing.assert_array_equal(one[[1, 11]], other[[1, 11]])
    assert (one[0] != other[0]).any()


@pytest.fixture(scope="module")
def usual(conditional: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """results/sample.json and the job's folder of a run sampled with the fields of its training."""
    copy = shutil.copytree(conditional, tmp_path_factory.mktemp("usual") / "run")
    assert run("--mode=sample", f"--workdir={copy}").status == 0
    result = results(copy, "sample")
    return result, copy / "samples" / result["job"]


@pytest.mark.parametrize(
    ("field", "entry", "nfe"),
    slow_after(
        1,
        [
            ("sampler.num_steps=5", {"num_steps": 5}, 5),
            ("sampler.spacing=0,19,4", {"spacing": [0, 19, 4]}, 3),
            ("sampler.variance=fixed_small", {"variance": "fixed_small"}, 20),
            ("sampler.clip=false", {"clip": False}, 20),
            ("sample.ema=false", {}, 20),
            ("sample.seed=1", {}, 20),
        ],
    ),
)
def test_what_decides_pixels_gives_other_pixels_in_another_folder(
    conditional: Path,
    usual: tuple[Any, Path],
    sample: Callable[..., tuple[dict[str, Any], Path]],
    field: str,
    entry: dict[str, Any],
    nfe: int,
) -> None:
    result, folder = sample(conditional, field)
    assert folder.name != usual[1].name and result["nfe"] == nfe
    assert result["sampler"] == usual[0]["sampler"] | entry
    assert (images(folder) != images(usual[1])).any()


@pytest.mark.slow
def test_each_command_warns_once_of_fixed_large_in_few_steps(tmp_path: Path) -> None:
    tiny, workdir = write_config(tmp_path), tmp_path / "run"

    def warned(*flags: str) -> list[str]:
        outcome = run(f"--workdir={workdir}", "--config.sampler.num_steps=5", *flags)
        assert outcome.status == 0, outcome.err
        return [line for line in outcome.err.splitlines() if line.startswith("warning: ")]

    short, line = warned(f"--config={tiny}", "--config.train.num_steps=1")
    assert "num_steps is 1, but the learning rate rises until step 5" in short
    assert "5 steps instead of 20" in line and line.endswith(
        "--config.sampler.variance=fixed_small"
    )
    assert warned("--mode=sample") == [line]
    assert warned("--mode=sample", "--config.sampler.variance=fixed_small") == []


def run_of(config: ConfigDict) -> Run:
    """Returns a run of which only the config is of interest."""
    config.model.name, config.model.num_classes = "mlp", 0
    experiment = vars(build.build(config, (8, 8, 1), 0))
    return Run(**experiment, params=None, step=7, digest="digest", training_config=config)


def test_the_job_is_named_by_the_variance_that_is_used_wherever_it_is_set() -> None:
    def name(process: str, sampler: str | None) -> str:
        config = config_lib.default_config()
        config.process.variance, config.sampler.variance = process, sampler
        return job_name(run_of(config))

    large, small = name("fixed_large", None), name("fixed_small", None)
    assert large != small
    assert name("fixed_large", "fixed_small") == name("fixed_small", "fixed_small") == small
    assert name("fixed_small", "fixed_large") == name("fixed_large", "fixed_large") == large


def test_the_job_is_named_by_the_options_that_its_sampler_takes_and_no_others() -> None:
    def name(sampler: str, **fields: Any) -> str:
        config = config_lib.default_config()
        config.sampler.update({"name": sampler} | fields)
        return job_name(run_of(config))

    assert name("ddim") != name("ancestral") and "-ddim-" in name("ddim")
    assert name("ddim") != name("ddim", eta=0.5) and name("ancestral") == name("ancestral", eta=0.5)
    assert name("ddim") == name("ddim", variance="fixed_small")
    for fields in ({"num_steps": 9}, {"spacing": "logsnr"}, {"clip": False}):
        assert name("ddim") != name("ddim", **fields)


def test_the_job_is_named_by_a_prior_that_is_the_grids_own() -> None:
    """Images of these grids were others before: a job of then must not be continued."""
    config = config_lib.default_config()
    config.process.update({"name": "ve", "sigma_max": 200.0})
    assert own_prior_std(run_of(config)) is None
    config.sampler.update({"name": "heun", "spacing": "karras", "num_steps": 5})
    assert own_prior_std(run_of(config)) == pytest.approx(80)
    config.process.name = "vp"
    assert own_prior_std(run_of(config)) is None


def test_an_older_checkpoint_can_be_sampled(
    conditional: Path, usual: tuple[Any, Path], sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    result, folder = sample(conditional, "sample.step=4")
    assert result["step"] == 4 and folder.name.startswith("step00000004-")
    assert (images(folder) != images(usual[1])).any()


def test_progressive_sampling_draws_the_way_from_noise_to_the_images(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    fields = ("sample.num_images=5", "sample.batch_size=5")  # The batch of the pictures.
    _, folder = sample(conditional, "sample.progressive=true", *fields)
    strip, side = pixels(folder / "strip.png"), 8 * 7 + 2
    room = strip.shape[1] - (11 * side + 2)  # For the names of the classes.
    assert strip.shape[0] == 4 * 2 * side + 2 and room > 0
    strip = strip[:, room:]
    for i, image in enumerate(images(folder)[:4]):  # The last frame of x_t and of x0_hat.
        for row in (2 * i, 2 * i + 1):
            top, left = row * side + 2, 10 * side + 2
            frame = strip[top : top + 56 : 7, left : left + 56 : 7]
            np.testing.assert_array_equal(frame, image[..., 0])


PROGRESSIVE = ("sample.progressive=true", "sample.num_images=5", "sample.batch_size=5")


def test_progressive_pictures_show_what_was_predicted_at_each_time(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    _, folder = sample(conditional, *PROGRESSIVE)
    with np.load(folder / "progressive.npz") as arrays:
        frames, times, labels = arrays["frames"], arrays["times"], arrays["labels"]
    assert frames.shape == (5, 21, 8, 8, 1) and frames.dtype == np.uint8
    assert times.tolist() == list(range(19, -2, -1)) and labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(frames[:, -1], images(folder))
    np.testing.assert_array_equal(frames[:, -2], frames[:, -1])  # The last step is to x0_hat.
    side = 8 * 7 + 2
    picture, strip = (pixels(folder / f"{name}.png") for name in ("progressive", "strip"))
    assert picture.shape[0] == 5 * side + 2
    picture, strip = (p[:, p.shape[1] - (11 * side + 2) :] for p in (picture, strip))
    shown = picture[2:, 2:].reshape(5, side, 11, side).transpose(0, 2, 1, 3)[..., :56:7, :56:7]
    np.testing.assert_array_equal(shown, frames[:, ::2, ..., 0])
    for i in range(4):  # Every second row of the strip is a row of this picture.
        row, other = strip[(2 * i + 1) * side :], picture[i * side :]
        np.testing.assert_array_equal(row[: side + 2], other[: side + 2])


@pytest.mark.slow
def test_a_job_killed_before_its_progressive_pictures_makes_them_and_the_same_images(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    result, folder = sample(conditional, *PROGRESSIVE)
    names = ("progressive.npz", "progressive.png", "strip.png", "images.npz")
    before = {name: (folder / name).read_bytes() for name in names}
    assert result["drawn_this_start"] == 5
    for name in names[:3]:
        (folder / name).unlink()
        sample(conditional, *PROGRESSIVE)
        assert {name: (folder / name).read_bytes() for name in names} == before
    result, _ = sample(conditional, *PROGRESSIVE)
    assert result["drawn_this_start"] == 0


SHARED = ("sample.shared_t=0,19,7", "sample.num_images=5")


@pytest.mark.slow
def test_shared_structure_is_pictured_at_the_samplers_nearest_times(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    result, folder = sample(conditional, *SHARED, "mesh.data=2")
    assert result["shared_t"] == [19, 7, 0]
    with np.load(folder / "shared.npz") as arrays:
        x_t, x0_hat, samples = (arrays[name].astype(int) for name in ("x_t", "x0_hat", "samples"))
        assert arrays["times"].tolist() == [19, 7, 0] and arrays["labels"].tolist() == [0, 1, 2, 3]
    assert x_t.shape == x0_hat.shape == (4, 3, 8, 8, 1) and samples.shape == (4, 3, 8, 8, 8, 1)
    own = images(folder)[:4].astype(int)
    # Without noise in the last step all samples are the image itself; rounding may move a pixel by one.
    for k in range(8):
        np.testing.assert_allclose(samples[:, 2, k], own, atol=1)
    np.testing.assert_allclose(x0_hat[:, 2], own, atol=1)
    spread = samples.std(axis=2).mean(axis=(0, 2, 3, 4))
    assert spread[0] > spread[1] > 5 > 1 > spread[2]
    side = 8 * 7 + 2
    picture = pixels(folder / "shared.png")
    assert picture.shape == (4 * (3 * side + 20), 64 + 10 * side + 22)
    few, other = sample(conditional, *SHARED, "sampler.num_steps=4", "sampler.variance=fixed_small")
    assert few["shared_t"] == [19, 6, 0] and other != folder


@pytest.mark.slow
def test_a_shared_picture_is_drawn_once_for_its_times_and_is_no_part_of_the_job(
    conditional: Path, sample: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    def written() -> list[int]:
        return [(folder / f"shared.{kind}").stat().st_mtime_ns for kind in ("png", "npz")]

    before, folder = sample(conditional, "sample.num_images=5")
    assert before["shared_t"] is None and not list(folder.glob("shared.*"))
    result, same = sample(conditional, *SHARED)
    assert same == folder and result["drawn_this_start"] == 0
    first = written()
    sample(conditional, *SHARED)
    assert written() == first
    (folder / "shared.png").unlink()  # As a command that was killed leaves it.
    sample(conditional, *SHARED)
    second = written()
    assert second > first
    for content in (b"damaged", b""):
        (folder / "shared.npz").write_bytes(content)
        sample(conditional, *SHARED)
        third = written()
        assert third > second
        second = third
    result, _ = sample(conditional, "sample.shared_t=3", "sample.num_images=5")
    assert result["shared_t"] == [3] and written() > second


# Choices


@pytest.mark.parametrize(
    "fields",
    [
        ("process.prediction=v", "model.dtype=bfloat16", "optimizer.grad_clip=0"),
        slow(("process.prediction=x0", "process.variance=fixed_small", "model.dropout=0.1")),
    ],
    ids=lambda fields: fields[0],
)
def test_every_prediction_trains_and_samples(train: Callable[..., Path], fields: list[str]) -> None:
    workdir = train("train.num_steps=3", *fields)
    (row,) = rows(workdir)
    assert 0 < row["loss"] < 2
    for leaf in jax.tree.leaves(state_of(workdir)["params"]):
        assert leaf.dtype == np.float32 and np.isfinite(leaf).all()


@pytest.mark.slow
def test_a_shared_picture_of_a_sampler_without_noise_warns_that_its_samples_are_the_same(
    conditional: Path, tmp_path: Path
) -> None:
    shutil.copytree(conditional, tmp_path / "run")
    flags = ("--mode=sample", f"--workdir={tmp_path / 'run'}", "--config.sample.shared_t=19")
    told = "the samples of an x_t are all the same, as sampler.name=ddim adds no noise"
    for eta, warned in ((0, True), (1, False)):
        outcome = run(*flags, "--config.sampler.name=ddim", f"--config.sampler.eta={eta}")
        assert outcome.status == 0 and (told in outcome.err) == warned


def test_a_folder_of_color_images_trains_and_samples(
    train: Callable[..., Path],
    tmp_path: Path,
    rng: np.random.Generator,
    sample: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    for name, i in itertools.product(("cats", "dogs"), range(10)):
        path = tmp_path / "pictures" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)).save(path)
    workdir = train(
        *("data.name=image_folder", f"data.source_dir={tmp_path / 'pictures'}"),
        *("data.image_size=4", "data.random_flip=true", "data.test_fraction=0.3"),
        *(
            "model.num_classes=auto",
            "train.accumulate=2",
            "train.num_steps=3",
            "train.eval_every=3",
        ),
    )
    shutil.rmtree(tmp_path / "pictures")  # Sampling needs no data.
    seen = results(workdir, "train")["data"]
    assert seen["num_images"] == 14 and seen["num_test_images"] == 6
    named = [{"label": i, "name": name, "num_images": 7} for i, name in enumerate(("cats", "dogs"))]
    assert seen["classes"] == named
    trained = diffusion_jax.load_run(workdir)
    assert trained.class_names == ("cats", "dogs") and trained.config.model.num_classes == 2
    assert json.loads((workdir / "config.json").read_text())["model"]["num_classes"] == 2
    formats = "sample.formats=png,npz,array_record"
    result, folder = sample(workdir, "sample.num_images=3", formats)
    assert [row["name"] for row in result["classes"]] == ["cats", "dogs"]
    opened = load("tfds:images", "train", source_dir=str(folder / "array_record"))
    assert opened.class_names == ("cats", "dogs")
    side = 4 * 14 + 2
    height, width = pixels(folder / "grid.png").shape[:2]
    assert height == 2 * side + 2 and width > 2 * side + 2  # One row per class, and its name.
    by_name, _ = sample(workdir, "sample.num_images=3", "sample.labels=dogs,cats")
    by_number, _ = sample(workdir, "sample.num_images=3", "sample.labels=1,0")
    assert by_name["job"] == by_number["job"] and by_name["labels"] == [1, 0]
    assert (by_name["drawn_this_start"], by_number["drawn_this_start"]) == (3, 0)
    unknown = run("--mode=sample", f"--workdir={workdir}", "--config.sample.labels=cat")
    assert unknown.status == 2 and "no class 'cat'" in unknown.err and "'cats'?" in unknown.err
    assert images(folder).shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(pixels(folder / "png" / "000002.png"), images(folder)[2])
    assert "eval_loss" in rows(workdir)[-1]


@pytest.mark.slow
def test_as_many_cpu_devices_train_as_share_a_micro_batch(tmp_path: Path) -> None:
    fields = ("train.batch_size=384", "train.accumulate=2", "train.num_steps=1", "mesh.data=-1")
    flags = [f"--config.{field}" for field in fields]
    outcome = run(f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'run'}", *flags)
    assert outcome.status == 0 and " 6 device(s)" in outcome.err


@pytest.mark.slow
def test_steps_in_one_dispatch_or_in_several_train_alike(train: Callable[..., Path]) -> None:
    single, several = train(), train("train.steps_per_dispatch=3")
    for one, other in zip(rows(single), rows(several), strict=True):
        assert one["step"] == other["step"]
        # The same sums in another program: float rounding.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert checkpoint_steps(several) == [4, 8, 12]

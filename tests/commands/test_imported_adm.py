"""A network with learned variances, imported from guided-diffusion's form, through evaluate and inpaint."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_features import register
from tiny_run import results, run

from diffusion_jax.features import FEATURES
from diffusion_jax.reading.tensors import read_tensors

pytestmark = pytest.mark.slow
CHECKPOINT = Path(__file__).parents[1] / "interchange/fixtures/guided_tiny/model.pt"
FLAGS = (
    "--image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 4 "
    "--learn_sigma True --num_head_channels 16 --resblock_updown True --use_new_attention_order True "
    "--timestep_respacing 3"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Path]:
    """Yields an imported run, of the network without its classes, whose data are the pictures."""
    register()
    folder = tmp_path_factory.mktemp("adm")
    tensors = read_tensors(CHECKPOINT)
    del tensors["label_emb.weight"]
    save_file(tensors, folder / "adm.safetensors")
    data = {"source_dir": pictures, "image_size": 8, "cache_dir": folder / "cache"}
    outcome = run(
        "--mode=import",
        f"--source={folder / 'adm.safetensors'}",
        "--format=guided_diffusion",
        f"--source_settings={FLAGS}",
        f"--workdir={folder / 'run'}",
        *(f"--config.data.{name}={value}" for name, value in data.items()),
    )
    assert outcome.status == 0, outcome.err
    yield folder / "run"
    del FEATURES["mixed"]


def test_its_bound_and_the_distance_of_its_samples_are_measured(workdir):
    fields = {
        "eval.metrics": "bpd,fd",
        "eval.num_terms": "2",
        "eval.num_images": "16",
        "eval.batch_size": "8",
        "eval.features": "mixed",
        "eval.split": "train",
    }
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    outcome = run("--mode=evaluate", f"--workdir={workdir}", *flags)
    assert outcome.status == 0, outcome.err
    filed = results(workdir, "evaluate")
    bound, distance = filed["bpd"], filed["fd_mixed"]
    assert bound["variance"] == "learned" and bound["num_steps"] == 1000
    parts = [bound[part]["value"] for part in ("rate", "prior", "distortion")]
    np.testing.assert_allclose(bound["total"]["value"], sum(parts[:1] + parts[2:]), rtol=1e-3)
    assert min(parts) > 0
    assert np.isfinite(distance["value"]) and distance["value"] > 0
    assert distance["images"]["sampler"]["variance"] == "learned" and distance["images"]["nfe"] == 3


def test_its_images_keep_the_masked_part_of_given_ones(workdir, pictures, tmp_path):
    (tmp_path / "given").mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(pictures / name, tmp_path / "given")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255  # The right half is redrawn.
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = {"edit.images": tmp_path / "given", "edit.mask": tmp_path / "mask.png"}
    outcome = run(
        "--mode=inpaint",
        f"--workdir={workdir}",
        "--config.sample.formats=png",
        "--config.sample.num_images=2",
        *(f"--config.{field}={value}" for field, value in flags.items()),
    )
    assert outcome.status == 0, outcome.err
    drawn = sorted(workdir.glob("edits/*/png/*.png"))
    assert len(drawn) == 2
    for i, path in enumerate(drawn):
        given = np.asarray(Image.open(pictures / f"{i:02}.png"))
        image = np.asarray(Image.open(path))
        np.testing.assert_array_equal(image[:, :4], given[:, :4])
        assert not np.array_equal(image, given)

"""Classifiers of guided-diffusion: the library's logits, its flags, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import openai_classifier
from diffusion_jax.interchange.openai_classifier import read_classifier
from diffusion_jax.models.networks import as_functions

FOLDER = Path(__file__).parent / "fixtures/classifier_tiny"
CASES = json.loads((Path(__file__).parents[2] / "benchmarks/parity/networks.json").read_text())
FLAGS = CASES["classifier_tiny"]["settings"]


def test_an_imported_classifier_has_the_librarys_logits():
    classifier = read_classifier(FOLDER / "model.pt", FLAGS)
    with np.load(FOLDER / "io.npz") as stored:
        io = dict(stored)
    model = as_functions(classifier.network, classifier.image_shape)
    logits = np.asarray(jax.jit(model.apply)(classifier.params, io["x"], io["t"]))
    assert np.abs(io["output"]).max() > 0.5 and logits.shape == (2, 10)
    # Two float32 programs that sum in different orders: 2e-7 was seen.
    np.testing.assert_allclose(logits, io["output"], atol=1e-5 * np.abs(io["output"]).max())


def test_the_flags_of_the_readme_with_those_of_the_diffusion_model(monkeypatch):
    text = (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
        "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True "
        "--classifier_scale 1.0 --classifier_path models/64x64_classifier.pt --classifier_depth 4"
    )
    tensors = {"out.2.c_proj.bias": np.zeros(1000)}
    monkeypatch.setattr(openai_classifier, "read_tensors", lambda path: tensors)
    monkeypatch.setattr(openai_classifier, "imported", lambda network, *more: None)
    network = read_classifier(Path("64x64_classifier.pt"), text).network
    assert (network.channels, network.num_res_blocks, network.head_channels) == (128, 4, 64)
    assert tuple(network.channel_mult) == (1, 2, 3, 4)
    assert tuple(network.attention_resolutions) == (32, 16, 8)
    assert (network.pool, network.out_channels, network.resample) == ("attention", 1000, "block")
    assert network.scale_shift and network.num_classes == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--classifier_deth 4", "unknown flag --classifier_deth in settings. Did you mean"),
        ("--classifier_pool mean", "--classifier_pool is 'mean'; it must be one of adaptive"),
        ("--classifier_pool spatial_v2", "it has not out.3.bias"),
        ("--classifier_depth 2", "it has not input_blocks."),
        ("--classifier_attention_resolutions 4", "attention_resolutions has 4; the levels"),
        ("--classifier_width 64", "does not fit"),
        ("--classifier_pool spatial", "has not out.2.bias"),
    ],
)
def test_wrong_flags_are_refused_by_name(more, message):
    with pytest.raises(InputError) as error:
        read_classifier(FOLDER / "model.pt", f"{FLAGS} {more}")
    assert message in str(error.value)


def test_a_diffusion_model_is_no_classifier():
    with pytest.raises(InputError, match=r"it has not out\.2\.c_proj\.bias"):
        read_classifier(FOLDER.parent / "guided_tiny/model.pt", FLAGS)


def test_a_truncated_file_is_refused(tmp_path):
    path = Path(shutil.copy(FOLDER / "model.pt", tmp_path / "model.pt"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.pt does not hold weights"):
        read_classifier(path, FLAGS)

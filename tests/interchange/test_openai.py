"""Flags of improved- and guided-diffusion: networks, processes, respaced chains, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import openai, source_of
from diffusion_jax.interchange.flags import flags_of

MODEL = Path(__file__).parent / "fixtures/guided_tiny/model.pt"
FLAGS = (
    "--image_size 16 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 8 "
    "--class_cond True --learn_sigma True --num_head_channels 16 --resblock_updown True "
    "--use_new_attention_order True"
)


def fields(text: str, defaults: dict = openai.GUIDED) -> dict:
    flags = flags_of(text, defaults, ignored=openai.IGNORED)
    return {**openai.network_fields(flags), **openai.process_fields(flags)}


def test_the_flags_of_a_published_network_are_its_preset():
    from diffusion_jax.models.networks import preset

    text = (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
        "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
    )
    found = fields(text)
    assert {name: found[f"model.{name}"] for name in preset("adm_64")} == preset("adm_64")
    assert found["process.variance"] == "learned" and found["process.schedule"] == "cosine"
    assert found["model.num_classes"] == 1000


def test_of_images_of_512_pixels_the_first_level_is_half_as_wide():
    found = fields("--image_size 512 --num_channels 256 --attention_resolutions 32,16,8")
    assert found["model.channels"] == 128
    assert found["model.channel_mult"] == (1, 2, 2, 4, 4, 8, 8)
    assert found["model.time_features"] == 256 and found["model.embedding_width"] == 1024


def test_a_longer_chain_scales_the_time_if_it_is_told_to():
    long = "--diffusion_steps 4000"
    assert "model.time_scale" not in fields(long)
    assert fields(long, openai.IMPROVED)["model.time_scale"] == 0.25
    assert fields(long, openai.IMPROVED)["process.num_timesteps"] == 4000


def test_fixed_variances_and_the_prediction_of_images():
    assert fields("")["process.variance"] == "fixed_large"
    assert fields("--sigma_small True", openai.IMPROVED)["process.variance"] == "fixed_small"
    assert fields("--predict_xstart True")["process.prediction"] == "x0"


@pytest.mark.parametrize(
    ("respacing", "expected"),
    [
        ("4", [0, 3, 6, 9]),
        ("3", [0, 4, 9]),  # 4.5 is rounded to even, as Python does.
        ("ddim5", [0, 2, 4, 6, 8]),
        ("2,3", [0, 4, 5, 7, 9]),
        ("1,1", [0, 5]),
    ],
)
def test_respaced_chains(respacing, expected):
    assert openai.respaced(10, respacing) == expected


def test_a_respaced_chain_is_that_of_the_sampler():
    found = fields("--use_ddim True --clip_denoised False --timestep_respacing ddim25")
    assert found["sampler.clip"] is False
    assert fields("--timestep_respacing ddim25")["sampler.name"] == "ancestral"  # As theirs.
    assert found["sampler.name"] == "ddim"
    np.testing.assert_array_equal(found["sampler.spacing"], np.arange(0, 1000, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--image_size", "must hold pairs"),
        ("--image_size '64", "cannot be read: No closing quotation"),
        (
            "--image_sise 64",
            "unknown flag --image_sise in --source_settings. Did you mean 'image_size'?",
        ),
        ("--large_size 256", "unknown flag --large_size"),
        ("--image_size 65", "--image_size is 65; it must be one of"),
        ("--image_size big", "--image_size is 'big'; it must be a number"),
        ("--class_cond maybe", "--class_cond is 'maybe'; it must be True or False"),
        ("--attention_resolutions 16;8", "must be integers separated by commas"),
        ("--num_heads_upsample 2", "--num_heads_upsample differs"),
        ("--noise_schedule sqrt", "--noise_schedule is 'sqrt'"),
        ("--timestep_respacing ddim999", "no stride takes so many"),
        ("--timestep_respacing 2000", "a section has 1000 steps"),
    ],
)
def test_flags_that_are_not_theirs_are_refused_by_name(text, message):
    with pytest.raises(InputError) as error:
        fields(text)
    assert message in str(error.value)


def test_the_wrong_flags_name_the_tensors_that_do_not_fit():
    with pytest.raises(InputError, match="it has not label_emb.weight|has label_emb.weight"):
        openai.read_guided(MODEL, FLAGS.replace("--class_cond True", "--class_cond False"))
    with pytest.raises(InputError, match="does not fit"):
        openai.read_guided(MODEL, FLAGS.replace("--num_channels 32", "--num_channels 64"))


def test_a_truncated_file_is_refused(tmp_path):
    path = Path(shutil.copy(MODEL, tmp_path / "model.pt"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.pt does not hold weights"):
        openai.read_guided(path, FLAGS)
    assert source_of(path) == "guided_diffusion"

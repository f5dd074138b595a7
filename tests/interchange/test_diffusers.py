"""Folders of diffusers: options, schedulers, old names, the way back, and damaged or foreign files."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import diffusers
from diffusion_jax.interchange.diffusers_scheduler import process_fields
from diffusion_jax.interchange.places import places, template
from diffusion_jax.models.networks import UNet

FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a copy of a folder of diffusers."""
    return Path(shutil.copytree(FIXTURES / "diffusers_tiny", tmp_path / "theirs"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def unet_of(fields: Any) -> UNet:
    return UNet(**{k[6:]: v for k, v in fields.items() if k.startswith("model.")}, out_channels=3)


@pytest.mark.parametrize("name", ["diffusers_tiny", "diffusers_tiny_blocks"])
def test_tensors_go_to_our_parameters_and_back_bit_for_bit(name):
    config = json.loads((FIXTURES / name / "unet/config.json").read_text())
    foreign = diffusers.read(FIXTURES / name)
    tensors = diffusers.tensors_of(foreign.params, unet_of(foreign.fields), foreign.image_shape)
    theirs = load_file(FIXTURES / name / WEIGHTS)
    assert tensors.keys() == theirs.keys()
    for key, tensor in tensors.items():
        expected = theirs[key].astype(np.float32)
        if key == "time_embedding.linear_1.weight" and config["flip_sin_to_cos"]:
            expected = np.roll(expected, expected.shape[1] // 2, axis=1)  # Cosines came first.
        np.testing.assert_array_equal(tensor, expected, err_msg=key)


def test_every_module_with_parameters_has_a_place_and_the_other_way_around():
    options: dict[str, Any] = dict(
        channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8, 4)
    )
    variants: list[dict[str, Any]] = [
        {},
        dict(num_classes=2, time_embedding="fourier", resample="block", input_pyramid="residual"),
        dict(resample="pool", output_pyramid="skip", decoder_attention="level"),
    ]
    for more in variants:
        unet = UNet(**options, **more)
        modules = [path.partition("/")[0] for path in template(unet, (16, 16, 3))]
        assert sorted({place.name for place in places(unet, 16)}) == sorted(set(modules))


def test_names_of_older_versions_are_read(folder):
    tensors = load_file(folder / WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for new, former in names.items():
            name = name.replace(f".{new}.", f".{former}.")
        return name

    renamed = {old(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS)
    expected = diffusers.read(FIXTURES / "diffusers_tiny").params
    jax.tree.map(np.testing.assert_array_equal, diffusers.read(folder).params, expected)


def test_a_folder_of_the_network_alone_is_read_and_the_assumed_process_is_said(folder):
    foreign = diffusers.read(folder / "unet")
    assert "no scheduler_config.json" in foreign.notes[0]
    assert foreign.fields["process.schedule"] == "linear"
    assert foreign.fields["process.beta_end"] == 0.02


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            dict(beta_schedule="scaled_linear", beta_start=0.01, beta_end=0.02),
            {"process.schedule": "quad", "process.beta_start": 0.01, "process.beta_end": 0.02},
        ),
        (
            dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
            {"process.schedule": "cosine", "process.prediction": "v"},
        ),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="trailing", clip_sample=False),
            {"sampler.name": "ddim", "sampler.spacing": "trailing", "sampler.clip": False},
        ),
        (dict(variance_type="fixed_large"), {"process.variance": "fixed_large"}),
        (
            dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0),
            {"sampler.dynamic_threshold": 0.9, "sampler.clip": False},
        ),
        # Pixels are scaled by no more than the largest value, 1: they are clipped.
        (dict(thresholding=True, clip_sample=False), {"sampler.clip": True}),
        (
            dict(_class_name="DDIMScheduler"),
            {
                "sampler.num_steps": 50,
                "sampler.spacing": "leading",
                "sampler.clip": True,
                "sampler.clip_keeps": "eps",
            },
        ),
        (
            dict(_class_name="DDIMScheduler", steps_offset=1),
            {"sampler.spacing": tuple(map(float, range(1, 1000, 20)))},
        ),
        (
            dict(_class_name="DDIMScheduler", num_train_timesteps=20),
            {"sampler.num_steps": 20, "sampler.spacing": "leading"},
        ),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="linspace"),
            {"sampler.num_steps": 50, "sampler.spacing": "uniform"},
        ),
        (dict(_class_name="PNDMScheduler"), {"sampler.name": "pndm", "sampler.clip": False}),
        (dict(rescale_betas_zero_snr=True), {"process.zero_snr": True}),
    ],
)
def test_schedulers_are_processes_and_samplers(folder, scheduler, expected):
    change(folder / "scheduler/scheduler_config.json", **scheduler)
    fields = diffusers.read(folder).fields
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("scheduler", "note"),
    [
        (dict(), None),
        (dict(_class_name="DDIMScheduler", steps_offset=1), None),
        (dict(_class_name="DDIMScheduler", timestep_spacing="trailing"), None),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="linspace", num_train_timesteps=50),
            None,
        ),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="linspace"),
            "goes 20 steps back from each time",
        ),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="trailing", num_train_timesteps=128),
            "goes 2 steps back from each time",
        ),
        (
            dict(_class_name="DDIMScheduler", set_alpha_to_one=False),
            "leaves the noise of the first time",
        ),
        (dict(_class_name="PNDMScheduler"), "leaves the noise of the first time"),
        (
            dict(_class_name="PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True),
            "Runge-Kutta",
        ),
        (dict(_class_name="EulerDiscreteScheduler"), "EulerDiscreteScheduler is not read"),
    ],
)
def test_where_a_sampler_is_not_the_schedulers_a_note_says_so(folder, scheduler, note):
    change(folder / "scheduler/scheduler_config.json", **scheduler)
    notes = diffusers.read(folder).notes
    assert notes == () if note is None else (len(notes) == 1 and note in notes[0])


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet", dict(_class_name="UNet2DConditionModel"), "only UNet2DModel is read"),
        ("unet", dict(act_fn="gelu"), "act_fn is 'gelu'; only silu, swish is read"),
        ("unet", dict(novelty=3), "unknown option novelty (3)"),
        ("unet", dict(freq_shift=0.5), "freq_shift is 0.5"),
        ("unet", dict(block_out_channels=[8, 12]), "must be multiples of the first"),
        (
            "unet",
            dict(down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"]),
            "blocks of type 'CrossAttnDownBlock2D' are not read",
        ),
        (
            "unet",
            dict(down_block_types=["DownBlock2D", "DownBlock2D"]),
            "the levels with attention of down_block_types and up_block_types differ",
        ),
        ("unet", dict(resnet_time_scale_shift="scale_shift"), "attn_norm_num_groups is None"),
        (
            "unet",
            dict(layers_per_block=2),
            "it is of another network than its settings say: it has",
        ),
        ("unet", dict(block_out_channels=[8, 24]), "does not fit"),
        ("unet", dict(sample_size=None), "sample_size is None"),
        ("scheduler", dict(trained_betas=[0.1]), "trained_betas"),
        ("scheduler", dict(beta_schedule="exp"), "beta_schedule of the scheduler is 'exp'"),
        ("scheduler", dict(clip_sample_range=2.0), "clip_sample_range"),
        ("scheduler", dict(variance_type="learned_range"), "3 output channels"),
    ],
)
def test_what_we_have_not_is_refused_by_name(folder, file, values, message):
    name = "unet/config.json" if file == "unet" else "scheduler/scheduler_config.json"
    change(folder / name, **values)
    with pytest.raises(InputError) as error:
        diffusers.read(folder)
    assert message in str(error.value)


def test_missing_and_surplus_tensors_are_named_with_their_shapes(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["extra.weight"] = tensors.pop("conv_in.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError) as error:
        diffusers.read(folder)
    assert "has not conv_in.weight and has extra.weight (8, 3, 3, 3) besides" in str(error.value)


def test_a_truncated_file_and_one_that_is_no_json_are_refused_by_name(folder):
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="diffusion_pytorch_model.safetensors"):
        diffusers.read(folder)
    weights.unlink()
    with pytest.raises(InputError, match="has none of the files"):
        diffusers.read(folder)
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(InputError, match="config.json"):
        diffusers.read(folder)


@pytest.mark.parametrize(
    "kind",
    ["CMStochasticIterativeScheduler", "ScoreSdeVpScheduler", "FlowMatchEulerDiscreteScheduler"],
)
def test_schedulers_of_other_processes_are_refused(folder, kind):
    change(folder / "scheduler/scheduler_config.json", _class_name=kind)
    with pytest.raises(InputError, match=f"{kind} is not read: its process is not"):
        diffusers.read(folder)


def test_the_corrector_of_the_exploding_sde_is_the_schedulers():
    scheduler = {"_class_name": "ScoreSdeVeScheduler", "snr": 0.075, "correct_steps": 5}
    network = {"center_input_sample": True, "time_embedding_type": "fourier"}
    found = process_fields(scheduler, network)
    assert (found["sampler.snr"], found["sampler.corrector_steps"]) == (0.075, 5)
    assert found["sampler.clip"] is False and found["sampler.predictor"] == "reverse_diffusion"

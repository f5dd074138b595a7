"""Folders for diffusers: their configs there and back, and networks and processes that diffusers has not."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.interchange import diffusers, diffusers_export
from diffusion_jax.interchange.diffusers_scheduler import process_fields
from diffusion_jax.models.networks import UNet

FIXTURES = Path(__file__).parent / "fixtures"
FIELDS: dict[str, Any] = {
    "process.name": "ddpm",
    "process.schedule": "linear",
    "process.num_timesteps": 1000,
    "process.beta_start": None,
    "process.beta_end": None,
    "process.prediction": "eps",
    "process.variance": "fixed_large",
    "sampler.clip": True,
}
SMALL: dict[str, Any] = dict(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)


def unet_of(fields: Any) -> UNet:
    return UNet(**{k[6:]: v for k, v in fields.items() if k.startswith("model.")}, out_channels=3)


@pytest.mark.parametrize(
    "name", ["diffusers_tiny", "diffusers_tiny_classes", "diffusers_tiny_blocks"]
)
def test_an_export_is_imported_as_what_it_was(tmp_path, name):
    foreign = diffusers.read(FIXTURES / name)
    unet, fields = unet_of(foreign.fields), {**FIELDS, **foreign.fields}
    diffusers_export.write(tmp_path, unet, foreign.image_shape, foreign.params, fields)
    again = diffusers.read(tmp_path)
    # diffusers has no class for none: it is one more class there, and on the way back another is added.
    classes = unet.num_classes
    if classes:
        rows = again.params["class"]["embedding"]
        assert again.fields["model.num_classes"] == classes + 1
        again.params["class"]["embedding"] = rows[: classes + 1]
    jax.tree.map(np.testing.assert_array_equal, again.params, foreign.params)
    same = {k: v for k, v in foreign.fields.items() if k != "model.num_classes"}
    assert {k: again.fields[k] for k in same} == same
    assert (tmp_path / "model_index.json").exists() == (classes == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(time_scale=0.25), "with model.time_scale=0.25; it is 1.0 there"),
        (dict(skip_rescale=True), "model.skip_rescale=True"),
        (dict(resample="pool"), "model.resample=pool"),
        (dict(channel_mult=(2, 2)), "it begins with 1 there"),
        (dict(num_heads=2, attention_resolutions=(8, 4)), "diffusers has heads of one width"),
        (dict(norm_groups=None), "so train with model.norm_groups set"),
    ],
)
def test_networks_that_diffusers_has_not_are_refused_by_option(options, message):
    with pytest.raises(InputError) as error:
        diffusers_export.network_config(UNet(**{**SMALL, **options}), (8, 8, 3))
    assert message in str(error.value)


def test_heads_of_one_width_and_equal_groups_are_exported():
    config = diffusers_export.network_config(UNet(**SMALL, num_heads=2), (8, 8, 3))
    assert config["attention_head_dim"] == 8
    wide = UNet(**{**SMALL, "channels": 128, "norm_groups": None})
    assert diffusers_export.network_config(wide, (8, 8, 3))["norm_num_groups"] == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process.name": "vp"}, "process.name is 'vp'; diffusers has schedulers for ddpm"),
        ({"process.schedule": "jsd"}, "process.schedule is 'jsd'"),
        ({"process.prediction": "edm"}, "process.prediction is 'edm'"),
        ({"process.inputs": "ve"}, "process.inputs is not 'unit'"),
    ],
)
def test_processes_that_diffusers_has_not_are_refused_by_field(fields, message):
    with pytest.raises(InputError) as error:
        diffusers_export.scheduler_config({**FIELDS, **fields})
    assert message in str(error.value)


def test_a_sampler_of_other_options_is_the_exported_one():
    chosen = {"sampler.variance": "fixed_small", "sampler.dynamic_threshold": 0.99}
    config = diffusers_export.scheduler_config({**FIELDS, **chosen, "sampler.clip": False})
    assert config["variance_type"] == "fixed_small" and not config["clip_sample"]
    again = process_fields(config, {"in_channels": 3, "out_channels": 3})
    assert again["sampler.dynamic_threshold"] == 0.99 and again["sampler.clip"] is False


def test_betas_that_are_not_set_are_those_of_the_chain():
    config = diffusers_export.scheduler_config({**FIELDS, "process.num_timesteps": 100})
    assert (config["beta_start"], config["beta_end"]) == (1e-3, 0.2)

"""Checkpoints of score_sde: both formats, its configs in our terms, and foreign or damaged files.

The .pth fixtures were written by score_sde_pytorch's own code. Its torch modules are numbered in the order in which the
JAX code makes its own, from which the tests write what that code would have saved.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from slow import slow_after

from diffusion_jax.commands.import_checkpoint import configured
from diffusion_jax.config import default_config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import build
from diffusion_jax.interchange import score_sde, source_of
from diffusion_jax.interchange.score_sde_configs import CONFIGS, config_of, fields_of
from diffusion_jax.models.networks import preset
from diffusion_jax.reading.tensors import read_tensors

FIXTURES = Path(__file__).parent / "fixtures"
TINY = " --nf 8 --image_size 8 --ch_mult 1,2 --num_res_blocks 1 --attn_resolutions 4"
SETTINGS = {
    "score_sde_tiny_ddpmpp": "vp/cifar10_ddpmpp_continuous" + TINY,
    "score_sde_tiny_ncsnpp": "ve/cifar10_ncsnpp_continuous" + TINY,
    "score_sde_tiny_skip": "ve/celebahq_256_ncsnpp_continuous" + TINY,
    "score_sde_tiny_ddpm": "vp/ddpm/cifar10"
    + TINY.replace("--nf 8", "--nf 32").replace("1,2", "1,1"),
}
NCSNPP = FIXTURES / "score_sde_tiny_ncsnpp/model.pth"


def flax_class(keys: set[str], tensors: dict[str, np.ndarray], has_down: bool) -> str:
    """Returns the class of a module, by its tensors."""
    if "NIN_3.W" in keys:
        return "AttnBlock"
    if "Conv_1.weight" in keys:
        return "ResnetBlock"
    if "Conv2d_0.weight" in keys:
        return "Downsample"
    if "Conv_0.weight" in keys:
        one_pixel = tensors["Conv_0.weight"].shape[-1] == 1
        return "Combine" if one_pixel else "Upsample" if has_down else "Downsample"
    if keys == {"W"}:
        return "GaussianFourierProjection"
    return {1: "GroupNorm", 2: "Dense", 4: "Conv"}[tensors["weight"].ndim]


def flax_tree(torch: dict[str, np.ndarray], of_ddpm: bool) -> dict[str, Any]:
    """Returns the parameters of the JAX code that are those of the torch code, by number of module."""
    modules: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in torch.items():
        _, number, rest = name.split(".", 2)
        modules.setdefault(int(number), {})[rest] = np.asarray(tensor, np.float32)
    tree: dict[str, Any] = {}
    counts = Counter[str]()
    for _, tensors in sorted(modules.items()):
        kind = flax_class(set(tensors), tensors, counts["Downsample"] > 0)
        suffix = {"AttnBlock": ("", "pp"), "ResnetBlock": ("DDPM", "BigGANpp")}.get(kind)
        kind += suffix[not of_ddpm] if suffix else ""
        module = tree.setdefault(f"{kind}_{counts[kind]}", {})
        counts[kind] += 1
        for name, tensor in tensors.items():
            *inner, leaf = name.split(".")
            target = module.setdefault(inner[0], {}) if inner else module
            if leaf == "weight":
                leaf = {1: "scale"}.get(tensor.ndim, "kernel")
                leaf = "weight" if inner == ["Conv2d_0"] else leaf
                if tensor.ndim == 4:
                    tensor = tensor.transpose(2, 3, 1, 0)
                tensor = tensor.T if tensor.ndim == 2 else tensor
            target[leaf] = np.ascontiguousarray(tensor)
    return tree


def flax_checkpoint(path: Path, name: str, **changes: Any) -> Path:
    """Writes what the JAX code would have saved, of a fixture of the torch code."""
    found = read_tensors(FIXTURES / name / "model.pth")
    prefix = "model.module."
    trained = {
        k.removeprefix(prefix): v
        for k, v in found.items()
        if k.startswith(prefix) and not k.endswith("sigmas")
    }
    names = [k for k in trained if k != "all_modules.0.W"]
    shadow = [v for k, v in found.items() if k.startswith("ema.shadow_params.")]
    averaged = {**trained, **dict(zip(names, shadow, strict=True))}
    of_ddpm = name.endswith("_ddpm")
    target = flax_tree(trained, of_ddpm)
    state = {
        "step": 1300,
        "optimizer": {"state": {"step": np.int32(1300)}, "target": target},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.999,
        "params_ema": flax_tree(averaged, of_ddpm),
        "rng": np.array([1, 2], np.uint32),
        **changes,
    }
    file = path / "checkpoint_26"
    file.write_bytes(msgpack_serialize(state))
    return file


@pytest.mark.parametrize("name", slow_after(2, SETTINGS))
def test_both_formats_hold_the_same_parameters(tmp_path, name):
    file = flax_checkpoint(tmp_path, name)
    assert source_of(file) == "score_sde"
    torch = score_sde.read(FIXTURES / name / "model.pth", SETTINGS[name])
    flax = score_sde.read(file, SETTINGS[name])
    jax.tree.map(np.testing.assert_array_equal, flax.params, torch.params)
    jax.tree.map(np.testing.assert_array_equal, flax.trained, torch.trained)
    assert flax.step == 1300
    # The average is another: the peer halves what is trained.
    kernel = torch.params["conv_in"]["kernel"]
    np.testing.assert_allclose(torch.trained["conv_in"]["kernel"], kernel / 2, atol=1e-3)
    assert np.abs(kernel).max() > 0.1


@pytest.mark.parametrize("name", slow_after(4, CONFIGS))
def test_every_config_is_a_valid_run(name):
    config = config_of(name)
    shape = (config.image_size, config.image_size, 3)
    exp = build.build(configured(default_config(), fields_of(config), ()), shape, 0, ())
    assert exp.network is not None


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("vp/cifar10_ddpmpp_continuous", "ddpmpp"),
        ("subvp/cifar10_ddpmpp_deep_continuous", "ddpmpp_deep"),
        ("ve/cifar10_ncsnpp_continuous", "ncsnpp"),
        ("ve/cifar10_ncsnpp_deep_continuous", "ncsnpp_deep"),
        ("ve/church_ncsnpp_continuous", "ncsnpp_256"),
    ],
)
def test_the_configs_are_the_presets(name, network):
    fields = fields_of(config_of(name))
    expected = preset(network)
    assert {option: fields[f"model.{option}"] for option in expected} == expected


def test_pixels_in_0_1_have_half_the_noise():
    fields = fields_of(config_of("ve/celebahq_256_ncsnpp_continuous"))
    assert (fields["process.sigma_min"], fields["process.sigma_max"]) == (0.02, 696)
    assert (fields["process.inputs"], fields["process.name"]) == ("ve", "ve")
    fields = fields_of(config_of("ve/cifar10_ncsnpp"))
    assert (fields["process.inputs"], fields["process.name"]) == ("level", "ncsn")
    assert fields_of(config_of("vp/cifar10_ddpmpp"))["process.name"] == "ddpm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "--source_settings names no config; there are vp/ddpm/cifar10, "),
        ("ve/cifar10_ncsnp", "no config 've/cifar10_ncsnp' of score_sde; there are "),
        ("ve/ncsnv2/cifar10", "is a RefineNet of NCSN, which is not read"),
        ("ve/ncsn/celeba", "is a RefineNet of NCSN, which is not read"),
        ("vp/ddpm/cifar10_unconditional", "is not given the time"),
        ("ve/cifar10_ncsnpp --width 3", "unknown flag --width in --source_settings"),
        ("ve/cifar10_ncsnpp --nf x", "--nf is 'x'; it must be a number"),
        ("ve/cifar10_ncsnpp_continuous", "besides"),
        (SETTINGS["score_sde_tiny_ncsnpp"].replace("1,2", "1,3"), "does not fit"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        score_sde.read(NCSNPP, settings)
    assert message in str(error.value)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    settings = SETTINGS["score_sde_tiny_ncsnpp"]
    file = flax_checkpoint(tmp_path, "score_sde_tiny_ncsnpp")
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    with pytest.raises(InputError, match="not a whole checkpoint of Flax"):
        score_sde.read(file, settings)
    file.write_bytes(b"\x93\x01\x02\x03")
    with pytest.raises(InputError, match="not a checkpoint of Flax"):
        score_sde.read(file, settings)
    flax_checkpoint(tmp_path, "score_sde_tiny_ncsnpp", params_ema={})
    with pytest.raises(InputError, match="it has no params_ema"):
        score_sde.read(file, settings)
    short = tmp_path / "short.pth"
    short.write_bytes(NCSNPP.read_bytes()[:-1000])
    with pytest.raises(InputError, match="does not hold weights"):
        score_sde.read(short, settings)
    guided = FIXTURES / "guided_tiny/model.pt"
    other = tmp_path / "other.pth"
    other.write_bytes(guided.read_bytes())
    with pytest.raises(InputError, match="no checkpoint of score_sde: its model has 0 trained"):
        score_sde.read(other, settings)

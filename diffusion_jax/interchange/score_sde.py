"""Checkpoints of score_sde (Song et al., 2021), of its JAX code (Flax's msgpack) and of its torch code (.pth).

Their files hold the tensors alone, the trained ones and their average; network and process are in the config file that
they were trained with, of which `score_sde_configs.py` has the facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import InputError, reason
from diffusion_jax.interchange.foreign import Foreign
from diffusion_jax.interchange.places import Layout, Place, imported, places, torch_leaf
from diffusion_jax.interchange.score_sde_configs import config_of, fields_of
from diffusion_jax.models.networks import UNet
from diffusion_jax.reading.flax_file import read_flax_file
from diffusion_jax.reading.tensors import read_tensors

BUFFER = "sigmas"
AVERAGE = "ema.shadow_params."
_ATTENTION = {
    "norm": "GroupNorm_0",
    "query": "NIN_0",
    "key": "NIN_1",
    "value": "NIN_2",
    "out": "NIN_3",
}


def _layers(unet: UNet) -> dict[str, dict[str, str]]:
    return {
        "res": {
            "norm1": "GroupNorm_0",
            "conv1": "Conv_0",
            "time_proj": "Dense_0",
            "norm2": "GroupNorm_1",
            "conv2": "Conv_1",
            "shortcut": "Conv_2" if unet.resample == "block" else "NIN_0",
        },
        "attention": _ATTENTION,
        "resize": {"conv": "Conv_0"},
        "input": {"": "Conv_0", "conv": "Conv2d_0"},
    }


def _is_pointwise(module: str) -> bool:
    return module.rpartition(".")[2].startswith("NIN_")


def torch_layout(unet: UNet, height: int) -> Layout:
    """Returns names of the parameters in the torch code: modules are numbered in the order of the forward pass.

    Args:
      unet: The network.
      height: Of its images.
    """
    numbers = {place.name: number for number, place in enumerate(places(unet, height))}

    def leaf(module: str, name: str) -> str:
        if _is_pointwise(module):
            return "b" if name == "bias" else "W"
        return "W" if name == "frequencies" else torch_leaf(module, name)

    return Layout(
        lambda place: f"all_modules.{numbers[place.name]}",
        _layers(unet),
        leaf,
        transposed=lambda name: not _is_pointwise(name.rpartition(".")[0]),
    )


def flax_layout(unet: UNet, height: int) -> Layout:
    """Returns names of the parameters in the JAX code: modules are numbered within their class.

    Args:
      unet: The network.
      height: Of its images.
    """
    names, counts = {}, Counter[str]()
    for place in places(unet, height):
        kind = _class_of(unet, place)
        names[place.name] = f"{kind}_{counts[kind]}"
        counts[kind] += 1

    def leaf(module: str, name: str) -> str:
        if _is_pointwise(module):
            return "b" if name == "bias" else "W"
        if name == "kernel" and module.endswith("Conv2d_0"):
            return "weight"
        return "W" if name == "frequencies" else name

    return Layout(
        lambda place: names[place.name], _layers(unet), leaf, transposed=lambda name: False
    )


def _class_of(unet: UNet, place: Place) -> str:
    """The class of a module in the JAX code."""
    big = unet.resample == "block"
    if place.kind == "input":
        return "Combine" if unet.input_pyramid == "skip" else "Downsample"
    if place.kind == "resize":
        return "Downsample" if place.side == "down" else "Upsample"
    return {
        "fourier": "GaussianFourierProjection",
        "time_dense_0": "Dense",
        "time_dense_1": "Dense",
        "conv_in": "Conv",
        "conv_out": "Conv",
        "norm_out": "GroupNorm",
        "res": "ResnetBlockBigGANpp" if big else "ResnetBlockDDPM",
        "attention": "AttnBlockpp" if big else "AttnBlock",
    }[place.kind]


def fits(path: Path) -> bool:
    """Returns whether a path looks like a checkpoint: a .pth file, or one named as Flax's are, checkpoint_26.

    Args:
      path: A file or folder.
    """
    named = path.name.startswith("checkpoint_") and not path.suffix
    return (named or path.suffix == ".pth") and path.is_file()


def read(path: Path, settings: str = "") -> Foreign:
    """Reads a checkpoint of score_sde or of score_sde_pytorch.

    Args:
      path: Of the file.
      settings: The name of the config, such as "ve/cifar10_ncsnpp_continuous", then flags that change it, such as
        "--nf 64".

    Raises:
      InputError: There is no such config, or the file is not of its network.
      OSError: The file cannot be read.
    """
    theirs = config_of(settings)
    size = theirs.image_size
    image_shape = (size, size, 3)
    fields = fields_of(theirs)
    unet = UNet(
        **{
            name.removeprefix("model."): v
            for name, v in fields.items()
            if name.startswith("model.")
        },
        out_channels=3,
    )
    if path.suffix == ".pth":
        trained, averaged, step = _torch_parts(path)
        layout = torch_layout(unet, size)
    else:
        trained, averaged, step = _flax_parts(path)
        layout = flax_layout(unet, size)
    return Foreign(
        fields,
        image_shape,
        imported(unet, image_shape, layout, averaged, unused=[BUFFER]),
        imported(unet, image_shape, layout, trained, unused=[BUFFER]),
        step=step,
        files=(path,),
    )


def _torch_parts(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], int]:
    """Returns the tensors, their average and the step; the average lists those that are trained, in their order."""
    found = read_tensors(path)
    trained = {
        name.removeprefix("model.").removeprefix("module."): tensor
        for name, tensor in found.items()
        if name.startswith("model.")
    }
    averages = [tensor for name, tensor in found.items() if name.startswith(AVERAGE)]
    # Neither the levels nor the frequencies are trained.
    names = [name for name in trained if name not in (BUFFER, "all_modules.0.W")]
    if not averages or len(averages) != len(names):
        raise InputError(
            f"it is no checkpoint of score_sde: its model has {len(names)} trained tensors, and its ema {len(averages)}"
        )
    for name, tensor in zip(names, averages, strict=True):
        if tensor.shape != trained[name].shape:
            raise InputError(
                f"the average of {name} has the shape {tensor.shape}, not {trained[name].shape}"
            )
    return trained, {**trained, **dict(zip(names, averages, strict=True))}, _steps(found)


def _steps(found: Mapping[str, np.ndarray]) -> int:
    """The step that the state of the optimizer has, in versions of torch that keep it as a tensor; otherwise 0."""
    step = found.get("optimizer.state.0.step")
    return 0 if step is None or step.size != 1 else int(step.reshape(()))


def _flax_parts(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], int]:
    """Returns the tensors, their average and the step."""
    try:
        found = read_flax_file(path)
    except ValueError as error:
        raise InputError(reason(error)) from error

    def part(*prefixes: str) -> dict[str, np.ndarray]:
        for prefix in prefixes:
            named = {k[len(prefix) :]: v for k, v in found.items() if k.startswith(prefix)}
            if named:
                return named
        raise InputError(f"it is no checkpoint of score_sde: it has no {prefixes[-1]}*")

    trained = part("optimizer.target.params.", "optimizer.target.")
    averaged = part("params_ema.params.", "params_ema.")
    return trained, averaged, int(found.get("step", np.asarray(0)))

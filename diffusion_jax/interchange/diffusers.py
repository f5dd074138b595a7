"""Folders of diffusers: `UNet2DModel` and the config of a scheduler, read and written.

The classes and their configs are those of diffusers 0.3x; parameters that older versions named otherwise are read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError, reason
from diffusion_jax.interchange.diffusers_network import network_fields, size_of
from diffusion_jax.interchange.diffusers_scheduler import process_fields, sampler_notes
from diffusion_jax.interchange.foreign import Foreign
from diffusion_jax.interchange.places import Layout, Place, exported, imported, torch_leaf
from diffusion_jax.interchange.single import described
from diffusion_jax.models.networks import UNet
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reading.tensors import read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DESCRIPTION = "diffusion_jax.json"  # Beside what we export.
# Names of older versions.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_ONCE = {
    "norm_out": "conv_norm_out",
    "time_dense_0": "time_embedding.linear_1",
    "time_dense_1": "time_embedding.linear_2",
    "class": "class_embedding",
    "fourier": "time_proj",
}
_LAYERS = {
    "res": {"time_proj": "time_emb_proj", "shortcut": "conv_shortcut"},
    "attention": {
        "norm": "group_norm",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "out": "to_out.0",
    },
}


def layout(unet: UNet) -> Layout:
    """Returns diffusers' names of the parameters of a U-Net.

    Args:
      unet: The network.
    """
    last = len(unet.channel_mult) - 1

    def module(place: Place) -> str:
        if not place.side:
            return _ONCE.get(place.kind, place.kind)
        kinds = {"res": "resnets", "attention": "attentions"}
        if place.side == "middle":
            return f"mid_block.{kinds[place.kind]}.{place.block}"
        number = place.level if place.side == "down" else last - place.level
        block = f"{place.side}_blocks.{number}"
        if place.kind == "input":
            return f"{block}.skip_conv"
        if place.kind in ("norm_out", "conv_out"):
            return f"{block}.skip_{place.kind[:4]}"
        if place.resize:
            skip = unet.input_pyramid == "skip"
            return f"{block}.resnet_{place.side}" if skip else f"{block}.{place.side}samplers.0"
        # Of a decoder's level, only the last block attends, but it is the first attention there.
        only = place.kind == "attention" and place.side == "up"
        index = 0 if only and unet.decoder_attention == "level" else place.block
        return f"{block}.{kinds[place.kind]}.{index}"

    return Layout(module, _LAYERS, torch_leaf)


def read(path: Path, settings: str = "") -> Foreign:
    """Reads the folder of a pipeline, or of a `UNet2DModel` alone.

    Args:
      path: The folder.
      settings: None.

    Raises:
      InputError: It is no such folder, a file is damaged, or it has an option that our U-Net or processes have not.
      OSError: A file cannot be read.
    """
    del settings
    folder = path / "unet" if (path / "unet" / "config.json").exists() else path
    theirs = _json(folder / "config.json")
    if theirs.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"{folder / 'config.json'} describes a {theirs.get('_class_name')!r}; only UNet2DModel is read"
        )
    schedulers = [path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"]
    scheduler = next((file for file in schedulers if file.exists()), None)
    fields, notes = network_fields(theirs), []
    if scheduler is None:
        notes.append(
            "there is no scheduler_config.json: the process is taken to be DDPM's with 1,000 steps of linear betas"
        )
    says = {} if scheduler is None else _json(scheduler)
    fields |= process_fields(says, theirs)
    notes += sampler_notes(says)
    channels = theirs.get("in_channels", 3)
    image_shape = (*size_of(theirs.get("sample_size")), channels)
    unet = UNet(
        **{
            name.removeprefix("model."): v
            for name, v in fields.items()
            if name.startswith("model.")
        },
        out_channels=theirs.get("out_channels", 3),
    )
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise InputError(f"{folder} has none of the files {', '.join(WEIGHTS)}")
    tensors = {_current(name): tensor for name, tensor in read_tensors(weights).items()}
    # Fourier features are sines, then cosines, whatever flip_sin_to_cos says.
    flipped = theirs.get("flip_sin_to_cos", True) and unet.time_embedding != "fourier"
    names = layout(unet)._replace(cos_first=bool(flipped))
    params = imported(unet, image_shape, names, tensors)
    if (own := path / DESCRIPTION).exists():  # An export of ours says more than diffusers' configs.
        return _described(own, params, weights)
    files = (folder / "config.json", weights, *([scheduler] if scheduler else []))
    return Foreign(fields, image_shape, params, notes=tuple(notes), files=files)


def _described(own: Path, params: Any, weights: Path) -> Foreign:
    """Returns a run that we exported, of whose classes the last one stands for none."""
    description = described(own.read_text(), str(own))
    fields = description.fields()
    if fields["model.num_classes"]:
        params["class"]["embedding"] = params["class"]["embedding"][:-1]
    return Foreign(
        fields,
        description.image_shape,
        params,
        step=description.step,
        files=(own, weights),
        class_names=description.class_names,
    )


def fits(path: Path) -> bool:
    """Returns whether a path is a folder of diffusers.

    Args:
      path: A file or folder.
    """
    return any((path / name).exists() for name in ("unet/config.json", "config.json"))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json_text.parse_object(read_regular(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {reason(error)}") from error


def _current(name: str) -> str:
    for old, new in _OLD.items():
        if "attentions" in name:
            name = name.replace(old, new)
    return name


def tensors_of(params: Any, unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Returns the tensors of a `UNet2DModel` with our parameters.

    Args:
      params: The parameters.
      unet: The network, which has a `UNet2DModel` that is the same.
      image_shape: (H, W, C) of its images.
    """

    def pointwise(path: str) -> bool:
        return "/shortcut/" in path or "_input/" in path

    return exported(unet, image_shape, layout(unet), params, pointwise)

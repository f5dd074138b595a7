"""Networks of EDM (Karras et al., 2022): the state_dict of one, in a safetensors file.

Their own files are pickles, which are programs; docs/import_export.md has the script that writes such a file instead.
What the network is, the names and shapes of the tensors say; which preconditioning is around it they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.interchange.flags import flags_of
from diffusion_jax.interchange.foreign import Foreign
from diffusion_jax.interchange.places import Layout, Place, imported, torch_leaf
from diffusion_jax.models.networks import UNet
from diffusion_jax.reading.tensors import read_names, read_tensors

PREFIX = "model."
AUGMENT = "map_augment.weight"
LABEL = "map_label.weight"
STEPS = "u"  # Noise levels, which the preconditioning of improved DDPM alone keeps.
FLAGS: dict[str, Any] = dict(precond="", sigma_data=0.5)
PROCESSES: dict[str, dict[str, Any]] = {
    "edm": {
        "process.name": "ve",
        "process.prediction": "edm",
        "process.sigma_min": 0.002,
        "process.sigma_max": 80.0,
    },
    "vp": {
        "process.name": "vp",
        "process.prediction": "eps",
        "process.beta_min": 0.1,
        "process.beta_max": 20.0,
    },
    "ve": {
        "process.name": "ve",
        "process.prediction": "score",
        "process.inputs": "ve",
        "process.sigma_min": 0.02,
        "process.sigma_max": 100.0,
    },
    "iddpm": {
        "process.name": "ddpm",
        "process.schedule": "cosine",
        "process.prediction": "eps",
        "process.variance": "learned",
        "loss.name": "hybrid",
    },
}
HEUN = {"sampler.name": "heun", "sampler.spacing": "karras", "sampler.num_steps": 18}
_LAYERS = {
    "res": {
        "norm1": "norm0",
        "conv1": "conv0",
        "time_proj": "affine",
        "norm2": "norm1",
        "conv2": "conv1",
        "shortcut": "skip",
    },
    "attention": {"norm": "norm2", "out": "proj"},
    "input": {"conv": ""},
}
_ONCE = {
    "fourier": "map_noise",
    "class": "map_label",
    "time_dense_0": "map_layer0",
    "time_dense_1": "map_layer1",
}


def fits(path: Path) -> bool:
    """Returns whether a path is a pickle of EDM, or a safetensors file with the tensors of one of its networks.

    Args:
      path: A file or folder.
    """
    if path.suffix not in (".pkl", ".safetensors") or not path.is_file():
        return False
    return path.suffix == ".pkl" or f"{PREFIX}map_layer0.weight" in read_names(path)


def read(path: Path, settings: str = "") -> Foreign:
    """Reads a safetensors file with the state_dict of a network of EDM.

    Args:
      path: The file.
      settings: "--precond edm" (the default), vp, ve or iddpm, and "--sigma_data 0.5".

    Raises:
      InputError: It is a pickle, a setting is unknown, or the tensors are not those of such a network.
      OSError: The file cannot be read.
    """
    flags = flags_of(settings, FLAGS)
    if path.suffix == ".pkl":
        raise InputError(
            "a pickle is a program, and nothing of it is run; docs/import_export.md has the lines with which EDM's "
            "own environment writes its tensors to a .safetensors file, which is read"
        )
    found = read_tensors(path)
    tensors = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in found.items()
        if name.startswith(PREFIX)
    }
    fields, image_shape = network_fields(tensors)
    unet = UNet(**fields, out_channels=_out_channels(tensors, image_shape[0]))
    named = {**tensors, **_class_rows(tensors)}
    named.pop("map_label.bias", None)
    unused = [name for name in named if name.endswith("resample_filter")] + [AUGMENT]
    params = imported(unet, image_shape, layout(unet, image_shape[0]), named, unused=unused)
    steps = found.get(STEPS)
    process, notes = _process(flags, steps, unet.out_channels == 2 * image_shape[2])
    notes = [*notes, "the tensors do not say the rate of dropout: model.dropout is 0"]
    if AUGMENT in tensors:
        notes.append("map_augment is left out: images are sampled without augmentation")
    fields = {f"model.{name}": value for name, value in fields.items()}
    return Foreign({**fields, **process}, image_shape, params, notes=tuple(notes), files=(path,))


def network_fields(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Returns options of our U-Net, and the shape (H, W, C) of its images, as names and shapes of tensors say.

    Args:
      tensors: Tensors by their names within the network, such as "enc.32x32_conv.weight".

    Raises:
      InputError: They are not those of such a network.
    """
    sizes = [_size(name) for name in tensors if name.startswith("enc.") and _size(name)]
    if not sizes or "map_layer0.weight" not in tensors:
        raise InputError(f"it holds no network of EDM: no tensors {PREFIX}enc.… and {PREFIX}map_…")
    height, heights = max(sizes), sorted(set(sizes), reverse=True)
    if heights != [height >> level for level in range(len(heights))]:
        raise InputError(f"the sizes of its feature maps are {heights}; each must be half the last")
    conv_in = _tensor(tensors, f"enc.{_at(height)}_conv.weight")
    channels = conv_in.shape[0]
    widths = [_tensor(tensors, f"enc.{_at(size)}_block0.conv1.weight").shape[0] for size in heights]
    if any(width % channels for width in widths):
        raise InputError(
            f"the channels of its levels are {widths}; they must be multiples of {channels}"
        )
    embedded = tensors["map_layer0.weight"]
    fields = {
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "num_res_blocks": sum(
            f"enc.{_at(height)}_block{i}.conv1.weight" in tensors for i in range(len(tensors))
        ),
        "attention_resolutions": tuple(
            size for size in heights if f"enc.{_at(size)}_block0.qkv.weight" in tensors
        ),
        "num_classes": tensors[LABEL].shape[1] if LABEL in tensors else 0,
        "time_features": embedded.shape[1],
        "embedding_width": embedded.shape[0],
        "resample": "block",
        **(_adm() if "out_norm.weight" in tensors else _song(tensors, heights)),
    }
    return fields, (height, height, conv_in.shape[1])


def _adm() -> dict[str, Any]:
    """Options of DhariwalUNet that are always the same."""
    return dict(time_embedding="adm", scale_shift=True, norm_eps=1e-5, head_channels=64)


def _song(tensors: Mapping[str, np.ndarray], heights: list[int]) -> dict[str, Any]:
    """Options of SongUNet."""
    pyramid = "none"
    for part, kind in (("skip", "skip"), ("residual", "residual")):
        if len(heights) > 1 and f"enc.{_at(heights[1])}_aux_{part}.weight" in tensors:
            pyramid = kind
    return dict(
        time_embedding="fourier" if "map_noise.freqs" in tensors else "ddpm",
        class_input="time",
        norm_eps=1e-6,
        decoder_attention="level",
        project_resampled=True,
        skip_rescale=True,
        fir=_taps(tensors),
        input_pyramid=pyramid,
        output_pyramid="skip"
        if len(heights) > 1 and f"dec.{_at(heights[-1])}_aux_norm.weight" in tensors
        else "none",
    )


def _taps(tensors: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """The taps of the filter for changes of resolution, of which the least is 1; empty: means and repeated pixels."""
    for name, tensor in tensors.items():
        if name.endswith("resample_filter"):
            taps = np.asarray(tensor, np.float64).sum((0, 1, 2))
            taps = taps / taps.min()
            return () if len(taps) == 2 and np.ptp(taps) < 1e-6 else tuple(map(float, taps))
    return ()


def _size(name: str) -> int:
    """32 of "enc.32x32_conv.weight"; 0 if there is none."""
    height, _, width = name.split(".")[1].partition("_")[0].partition("x")
    return int(height) if height.isdecimal() and height == width else 0


def _at(size: int) -> str:
    return f"{size}x{size}"


def _tensor(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise InputError(f"it is no whole network of EDM: it has not {PREFIX}{name}")
    return tensors[name]


def _out_channels(tensors: Mapping[str, np.ndarray], height: int) -> int:
    name = "out_conv" if "out_norm.weight" in tensors else f"dec.{_at(height)}_aux_conv"
    return _tensor(tensors, f"{name}.weight").shape[0]


def _class_rows(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The embedding of each class, a row each; with a bias, also that of none.

    SongUNet multiplies the one-hot class by the square root of the number of classes.
    """
    if LABEL not in tensors:
        return {}
    rows = np.asarray(tensors[LABEL], np.float32).T
    if "map_label.bias" not in tensors:
        return {LABEL: rows}
    bias = np.asarray(tensors["map_label.bias"], np.float32)
    return {LABEL: np.concatenate([rows * np.float32(math.sqrt(len(rows))), rows[:1] * 0]) + bias}


def layout(unet: UNet, height: int) -> Layout:
    """Returns their names of the parameters of a U-Net.

    Args:
      unet: The network.
      height: Of its images.
    """
    is_adm = unet.time_embedding == "adm"

    def module(place: Place) -> str:
        size = height >> place.level
        if place.kind == "conv_in":
            return f"enc.{_at(height)}_conv"
        if place.kind in ("norm_out", "conv_out"):
            part = place.kind.removesuffix("_out")
            return f"out_{part}" if is_adm else f"dec.{_at(size)}_aux_{part}"
        if not place.side:
            return _ONCE[place.kind]
        if place.kind == "input":
            return f"enc.{_at(size // 2)}_aux_{unet.input_pyramid}"
        if place.resize:
            return (
                f"enc.{_at(size // 2)}_down" if place.side == "down" else f"dec.{_at(2 * size)}_up"
            )
        if place.side == "middle":
            return f"dec.{_at(size)}_in{place.block}"
        return f"{'enc' if place.side == 'down' else 'dec'}.{_at(size)}_block{place.block}"

    def leaf(module: str, name: str) -> str:
        return "freqs" if name == "frequencies" else torch_leaf(module, name)

    return Layout(module, _LAYERS, leaf, qkv="hd3", cos_first=is_adm)


def _process(
    flags: Mapping[str, Any], steps: np.ndarray | None, is_double: bool
) -> tuple[dict[str, Any], list[str]]:
    """Returns our fields of the preconditioning and how it is sampled from, and what was assumed."""
    name, notes = flags["precond"], []
    if not name:
        name = "edm" if steps is None else "iddpm"
        if steps is None:
            notes.append("the tensors do not say the preconditioning: EDM's is assumed (--precond)")
    if name not in PROCESSES:
        raise InputError(f"--precond is {name!r}; it must be one of {', '.join(PROCESSES)}")
    if (name == "iddpm") != is_double:
        raise InputError(
            f"--precond is {name}, but the network has {'twice as many' if is_double else 'as many'} outputs as inputs"
        )
    if name == "iddpm":
        number = 1000 if steps is None else len(steps) - 1
        fields = {"process.num_timesteps": number, "sampler.name": "ancestral"}
        return {**PROCESSES[name], **fields, "sampler.clip": False}, notes
    fields = {**PROCESSES[name], **HEUN, "sampler.clip": False}
    if name == "edm":
        fields["process.sigma_data"] = flags["sigma_data"]
    elif flags["sigma_data"] != FLAGS["sigma_data"]:
        raise InputError(f"--sigma_data is for --precond edm, not {name}")
    return fields, notes

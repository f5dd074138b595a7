"""Folders that diffusers loads: a `UNet2DModel` with our parameters, and the config of a scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import InputError
from diffusion_jax.interchange.diffusers import WEIGHTS, tensors_of
from diffusion_jax.interchange.diffusers_scheduler import PREDICTIONS, SCHEDULES
from diffusion_jax.models.networks import UNet
from diffusion_jax.models.networks.layers import group_count

VERSION = "0.35.0"  # Of diffusers, whose configs these are.
# Options of the U-Net that a UNet2DModel has at one value alone.
_FIXED = {
    "time_scale": 1.0,
    "time_features": None,
    "class_input": "embedding",
    "decoder_attention": "blocks",
    "project_resampled": False,
    "fir": (),
    "skip_rescale": False,
    "input_pyramid": "none",
    "output_pyramid": "none",
}


def network_config(unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns the config.json of the `UNet2DModel` that is a U-Net.

    Args:
      unet: The network.
      image_shape: (H, W, C) of its images.

    Raises:
      InputError: It has an option that a UNet2DModel has not, or norms of other numbers of groups; they are named.
    """
    _check(unet)
    height, width, channels = image_shape
    attends = [
        height >> level in unet.attention_resolutions for level in range(len(unet.channel_mult))
    ]
    widths = [unet.channels * mult for mult in unet.channel_mult]
    resized = "resnet" if unet.resample == "block" else "conv"
    classes = unet.num_classes + 1 if unet.num_classes else None
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels if unet.out_channels is None else unet.out_channels,
        "block_out_channels": widths,
        "layers_per_block": unet.num_res_blocks,
        "down_block_types": [_block("Down", a, resized) for a in attends],
        "up_block_types": [_block("Up", a, resized) for a in reversed(attends)],
        "downsample_type": resized,
        "upsample_type": resized,
        "downsample_padding": 1 if unet.symmetric_padding else 0,
        "dropout": unet.dropout,
        "act_fn": "silu",
        "attention_head_dim": _head(unet, widths, attends),
        "norm_num_groups": (groups := _groups(unet)),
        "attn_norm_num_groups": groups,
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if unet.scale_shift else "default",
        "time_embedding_type": "positional",
        "time_embedding_dim": unet.embedding_width,
        "flip_sin_to_cos": False,
        "freq_shift": 1 if unet.time_embedding == "ddpm" else 0,
        "num_class_embeds": classes,
    }


def _check(unet: UNet) -> None:
    """Raises for options that no UNet2DModel has."""
    for name, value in _FIXED.items():
        if getattr(unet, name) != value:
            raise InputError(
                f"diffusers has no UNet2DModel with model.{name}={getattr(unet, name)!r}; it is {value!r} there"
            )
    if unet.resample == "pool" or unet.time_embedding == "fourier":
        raise InputError(
            "diffusers has no UNet2DModel with model.resample=pool, or with Fourier features alone"
        )
    if unet.channel_mult[0] != 1:
        raise InputError(
            f"diffusers has no UNet2DModel with model.channel_mult={tuple(unet.channel_mult)}: it begins with 1 there"
        )


def _block(side: str, attends: bool, resized: str) -> str:
    if attends:
        return f"Attn{side}Block2D"
    return f"Resnet{side}sampleBlock2D" if resized == "resnet" else f"{side}Block2D"


def _head(unet: UNet, widths: list[int], attends: list[bool]) -> int | None:
    """Returns the channels of each head, of which diffusers has one number; None: there is one head."""
    if unet.num_heads in (None, 1):
        return unet.head_channels
    attending = {width for width, a in zip(widths, attends, strict=True) if a} | {widths[-1]}
    if len(attending) > 1:
        raise InputError(
            f"model.num_heads is {unet.num_heads} over {sorted(attending)} channels; diffusers has heads of one width"
        )
    return attending.pop() // (unet.num_heads or 1)


def _groups(unet: UNet) -> int:
    """Returns the groups of all norms, of which diffusers has one number."""
    if unet.norm_groups is not None:
        return unet.norm_groups
    widths = [unet.channels * mult for mult in (1, *unet.channel_mult)]
    sums = {a + b for a in widths for b in widths} | set(widths)
    counts = {group_count(width) for width in sums}
    if len(counts) > 1:
        raise InputError(
            f"the norms have {', '.join(map(str, sorted(counts)))} groups, since model.norm_groups is unset; diffusers "
            "has one number of groups for all norms, so train with model.norm_groups set"
        )
    return counts.pop()


def scheduler_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scheduler_config.json of a process: that of `DDPMScheduler`.

    Args:
      fields: Our config fields by name.

    Raises:
      InputError: diffusers has no scheduler of this process or prediction.
    """
    process, prediction = fields["process.name"], fields["process.prediction"]
    schedule, steps = fields["process.schedule"], fields["process.num_timesteps"]
    schedules = {ours: theirs for theirs, ours in SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    for name, value, known in (
        ("process.name", process, {"ddpm": ""}),
        ("process.schedule", schedule, schedules),
        ("process.prediction", prediction, predictions),
    ):
        if value not in known:
            raise InputError(
                f"{name} is {value!r}; diffusers has schedulers for {', '.join(known)}"
            )
    if fields.get("process.inputs", "unit") != "unit":
        raise InputError("process.inputs is not 'unit', as it is in diffusers")
    variance = fields.get("sampler.variance") or fields["process.variance"]
    learned = {"learned": "learned_range"}
    quantile = fields.get("sampler.dynamic_threshold")
    found = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": steps,
        "beta_schedule": schedules[schedule],
        "prediction_type": predictions[prediction],
        "variance_type": learned.get(variance, variance),
        "clip_sample": bool(fields["sampler.clip"]),
        "rescale_betas_zero_snr": bool(fields.get("process.zero_snr")),
        "timestep_spacing": "leading",
    }
    if quantile:
        # Without a largest value, diffusers clips at 1, whatever the quantile.
        found |= {"thresholding": True, "dynamic_thresholding_ratio": quantile}
        found["sample_max_value"] = float(np.finfo(np.float32).max)
    if schedule != "cosine":
        found["beta_start"] = fields["process.beta_start"] or 0.1 / steps
        found["beta_end"] = fields["process.beta_end"] or 20 / steps
    return found


def write(
    folder: Path,
    unet: UNet,
    image_shape: tuple[int, int, int],
    params: PyTree,
    fields: Mapping[str, Any],
) -> None:
    """Writes the folder of a pipeline.

    Args:
      folder: It exists.
      unet: The network.
      image_shape: (H, W, C) of its images.
      params: Its parameters.
      fields: Our config fields by name.

    Raises:
      InputError: diffusers has no such network or process.
      OSError: It cannot be written.
    """
    from safetensors.numpy import save_file

    network, scheduler = network_config(unet, image_shape), scheduler_config(fields)
    for part, name, values in (
        ("unet", "config.json", network),
        ("scheduler", "scheduler_config.json", scheduler),
    ):
        (folder / part).mkdir()
        (folder / part / name).write_text(json.dumps(values, indent=2) + "\n")
    save_file(tensors_of(params, unet, image_shape), folder / "unet" / WEIGHTS[0], {"format": "pt"})
    if not unet.num_classes:  # No pipeline of diffusers gives such a network its labels.
        index = {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": VERSION,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

"""The config of diffusers' `UNet2DModel`, in our fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import InputError

_BLOCKS = {  # Name of a block without "Down" and "2D": attention, how it changes the resolution.
    "Block": (False, "conv"),
    "AttnBlock": (True, None),  # As downsample_type says.
    "ResnetsampleBlock": (False, "block"),
    "SkipBlock": (False, "skip"),
    "AttnSkipBlock": (True, "skip"),
}
# Fields that change nothing of the network or are what ours is.
_NEUTRAL = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2D",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "time_embedding_type": ("positional", "fourier"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
_READ = {
    *_NEUTRAL,
    *("sample_size", "in_channels", "out_channels", "center_input_sample", "time_embedding_dim"),
    *("freq_shift", "flip_sin_to_cos", "down_block_types", "up_block_types", "block_out_channels"),
    *("layers_per_block", "mid_block_scale_factor", "downsample_padding", "downsample_type"),
    *("upsample_type", "dropout", "attention_head_dim", "norm_num_groups", "norm_eps"),
    *("attn_norm_num_groups", "num_class_embeds", "num_train_timesteps"),
}


def size_of(size: Any) -> tuple[int, int]:
    """Returns the height and width that a `sample_size` says.

    Args:
      size: A number, or two.

    Raises:
      InputError: It is neither.
    """
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size):
        return size[0], size[1]
    raise InputError(f"sample_size is {size!r}; it must be the height and width of the images")


def network_fields(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our config fields of a `UNet2DModel`.

    Args:
      theirs: Its config.json.

    Raises:
      InputError: It has an option that our U-Net has not.
    """
    _check_options(theirs)
    widths = theirs["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise InputError(f"block_out_channels is {widths}; they must be multiples of the first")
    skip, attends, resample = _families(theirs, len(widths))
    _check_parts(theirs, skip, [widths[level] for level in attends])
    height, head = size_of(theirs.get("sample_size"))[0], theirs.get("attention_head_dim", 8)
    fourier = theirs.get("time_embedding_type", "positional") == "fourier"
    fields: dict[str, Any] = {
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": theirs.get("layers_per_block", 2),
        "attention_resolutions": tuple(height >> level for level in attends),
        "dropout": float(theirs.get("dropout", 0.0)),
        "num_classes": theirs.get("num_class_embeds") or 0,
        "norm_groups": None if skip else theirs.get("norm_num_groups", 32),
        "norm_eps": float(theirs.get("norm_eps", 1e-5)),
        "time_embedding": _embedding(theirs),
        "time_features": 2 * widths[0] if fourier else None,
        "embedding_width": theirs.get("time_embedding_dim"),
        "scale_shift": _scales(theirs),
        "head_channels": head,
        "resample": resample,
        "symmetric_padding": resample == "conv" and theirs.get("downsample_padding", 1) == 1,
    }
    if skip:
        fields |= {
            "decoder_attention": "level",
            "project_resampled": True,
            "fir": (1.0, 3.0, 3.0, 1.0),
            "skip_rescale": True,
            "input_pyramid": "skip",
            "output_pyramid": "skip",
        }
    return {f"model.{name}": value for name, value in fields.items()}


def _scales(theirs: Mapping[str, Any]) -> bool:
    return theirs.get("resnet_time_scale_shift", "default") == "scale_shift"


def _check_options(theirs: Mapping[str, Any]) -> None:
    """Raises for an option that is unknown, or has another value than those that are read."""
    for name in theirs:
        if name not in _READ and not name.startswith("_"):
            raise InputError(f"UNet2DModel has an unknown option {name} ({theirs[name]!r})")
    for name, values in _NEUTRAL.items():
        if name in theirs and theirs[name] not in values:
            raise InputError(
                f"{name} is {theirs[name]!r}; only {', '.join(map(str, values))} is read"
            )


def _check_parts(theirs: Mapping[str, Any], skip: bool, attending: list[int]) -> None:
    """Raises if the middle differs from the blocks, or attention has other groups than ours."""
    scale_shift = _scales(theirs)
    groups, of_middle = theirs.get("norm_num_groups", 32), theirs.get("attn_norm_num_groups")
    if (of_middle is None and scale_shift) or of_middle not in (None, groups):
        raise InputError(
            f"attn_norm_num_groups is {of_middle!r}; it must be norm_num_groups, {groups!r}: the attention of the "
            "middle has the norm of the others"
        )
    factor = theirs.get("mid_block_scale_factor", 1)
    if not math.isclose(factor, math.sqrt(2) if skip else 1, rel_tol=1e-4):
        raise InputError(f"mid_block_scale_factor is {factor!r}; it must be the other blocks'")
    if skip and any(width < 128 for width in attending):
        raise InputError("attention of AttnSkip blocks has 32 groups, of four channels at least")


def _embedding(theirs: Mapping[str, Any]) -> str:
    if theirs.get("time_embedding_type", "positional") == "fourier":
        return "fourier"
    shift = theirs.get("freq_shift", 0)
    if shift not in (0, 1):
        raise InputError(f"freq_shift is {shift!r}; it must be 0 or 1")
    return "ddpm" if shift else "adm"


def _families(theirs: Mapping[str, Any], levels: int) -> tuple[bool, list[int], str]:
    """Returns whether the blocks have pyramids, the levels with attention, and how the resolution changes."""
    sides = []
    for side, of_type in (("Down", "downsample_type"), ("Up", "upsample_type")):
        types = theirs[f"{side.lower()}_block_types"]
        types = list(types) if side == "Down" else list(reversed(types))
        if len(types) != levels:
            raise InputError(f"{side.lower()}_block_types has {len(types)} blocks of {levels}")
        found = []
        for name in types:
            key = str(name).removesuffix("2D").replace(side, "", 1)
            if key not in _BLOCKS or side not in str(name):
                raise InputError(f"blocks of type {name!r} are not read")
            attention, resize = _BLOCKS[key]
            by_type = {"conv": "conv", "resnet": "block"}.get(theirs.get(of_type, "conv"))
            found.append((attention, by_type if resize is None else resize))
        sides.append(found)
    down, up = sides
    if [a for a, _ in down] != [a for a, _ in up]:
        raise InputError("the levels with attention of down_block_types and up_block_types differ")
    kinds = {kind for _, kind in (*down[:-1], *up[:-1])} or {"conv"}
    if len(kinds) > 1 or None in kinds:
        raise InputError(
            f"the blocks change the resolution in {len(kinds)} ways; all must be of one kind"
        )
    skip = kinds == {"skip"}
    return skip, [i for i, (a, _) in enumerate(down) if a], "block" if skip else kinds.pop() or ""

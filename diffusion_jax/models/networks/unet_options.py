"""Options of the U-Net, which options they need, and whether they fit one another and the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_jax.models.networks.embeddings import TIME_EMBEDDINGS
from diffusion_jax.models.networks.layers import SAVEABLE
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Bool, Choice, Either, Float, Int, Tuple

if TYPE_CHECKING:
    from diffusion_jax.models.networks.unet import UNet

REMATS = ("none", "blocks")  # Or names of the results to keep.

CHANNEL_MULT = Option(
    Tuple(Int(1, 1_024), empty=False, longest=14),
    "width of each level in units of channels; each halves the resolution",
)
ATTENTION_RESOLUTIONS = Option(
    Tuple(Int(1, 16_384)), "heights of the feature maps that get self-attention"
)
NORM_GROUPS = Option(
    Int(1, 16_384),
    "groups per norm, a divisor of channels; unset: up to 32, of at least four channels",
)
NORM_EPS = Option(Float(1e-12, 1), "epsilon that norms add to the variance")
TIME_EMBEDDING = Option(
    Choice(TIME_EMBEDDINGS),
    "of the time: sinusoids of wavelengths up to 10000 (ddpm) or below (adm), or of random ones (fourier)",
)
TIME_SCALE = Option(
    Float(1e-6, 1e6), "factor of the time before that, such as 0.25 for 4,000 steps"
)
TIME_FEATURES = Option(Int(4, 65_536, factor=2), "columns of that embedding; unset: channels")
EMBEDDING_WIDTH = Option(
    Int(1, 65_536), "width of the dense layers behind it; unset: four times channels"
)
CLASS_INPUT = Option(
    Choice(("embedding", "time")),
    "where a class is added: to the output of these layers, or to their input",
)
SCALE_SHIFT = Option(
    Bool(), "the embedding scales and shifts the second norm of a block, rather than being added"
)
NUM_HEADS = Option(Int(1, 1_024), "heads of each attention; unset: 1")
HEAD_CHANNELS = Option(
    Int(1, 16_384), "channels of each head, in place of num_heads; unset: as num_heads says"
)
DECODER_ATTENTION = Option(
    Choice(("blocks", "level")),
    "which blocks of a decoder's level have attention: all, or the last",
)
RESAMPLE = Option(
    Choice(("conv", "pool", "block")),
    "changes of resolution: convolutions, means and repeated pixels, or residual blocks with these",
    off="conv",
)
SYMMETRIC_PADDING = Option(
    Bool(), "strided convolutions have zeros on all sides, as torch's, not below and right alone"
)
PROJECT_RESAMPLED = Option(
    Bool(), "such blocks have a linear map in their shortcut", needs=("resample",)
)
FIR = Option(
    Tuple(Float(0, 1_000), longest=8),
    "taps of the filter for changes of resolution, such as 1,3,3,1; empty: none",
)
SKIP_RESCALE = Option(Bool(), "each residual sum is divided by sqrt(2)")
INPUT_PYRAMID = Option(
    Choice(("none", "skip", "residual")),
    "smaller copies of the input that the encoder's levels see: by linear maps (skip) or convolutions",
)
OUTPUT_PYRAMID = Option(
    Choice(("none", "skip")), "the output is the sum of those of all levels of the decoder (skip)"
)
REMAT = Option(
    Either(Choice(REMATS), Tuple(Choice(SAVEABLE), empty=False)),
    "what the backward pass recomputes, to save memory: blocks, or all of them but the results named",
    on_resume=True,
)


def misfit(unet: UNet, image_shape: tuple[int, int, int]) -> str | None:
    """Returns why a U-Net as configured is not for images of this shape (H, W, C), or None.

    A resolution in `attention_resolutions` that no level has is an error too, as it would be ignored.
    """
    height, width, levels = image_shape[0], image_shape[1], len(unet.channel_mult)
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        return (
            f"image size {height}x{width} is not divisible by {factor}, the factor of a U-Net with "
            f"{levels} levels; change data.image_size or model.channel_mult"
        )
    heights = [height // 2**level for level in range(levels)]
    for resolution in unet.attention_resolutions:
        if resolution not in heights:
            return (
                f"model.attention_resolutions has {resolution}; the levels of this model have "
                f"{', '.join(map(str, heights))}"
            )
    return _conflict(unet, heights)


def _conflict(unet: UNet, heights: list[int]) -> str | None:
    """Returns which options of a U-Net exclude one another, or None."""
    if unet.num_heads is not None and unet.head_channels is not None:
        return (
            f"model.num_heads is {unet.num_heads} and model.head_channels is {unet.head_channels}; each says how many "
            "heads there are, so set one of them"
        )
    attends = [height in unet.attention_resolutions for height in heights[:-1]] + [True]
    levels = zip(unet.channel_mult, attends, strict=True)
    widths = sorted({unet.channels * mult for mult, has_attention in levels if has_attention})
    for name in ("num_heads", "head_channels"):
        value = getattr(unet, name)
        if value is not None and (wrong := [width for width in widths if width % value]):
            return f"model.{name} is {value}; it must divide the {wrong[0]} channels of a level with attention"
    if unet.project_resampled and unet.resample != "block":
        return f"model.project_resampled is true, but model.resample is {unet.resample!r}; it is for block"
    if unet.symmetric_padding and (unet.resample != "conv" or unet.fir):
        return (
            "model.symmetric_padding is true, but there is no strided convolution without a filter"
        )
    if len(unet.fir) % 2 or (unet.fir and not sum(unet.fir) > 0):
        return f"model.fir is {tuple(unet.fir)}; it must hold an even number of taps with a positive sum"
    return None

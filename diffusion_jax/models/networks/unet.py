"""The U-Net of Ho et al. (2020), Appendix B."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.models.networks.layers import (
    SAVEABLE,
    ClassEmbedding,
    Conv,
    Dense,
    Downsample,
    Dtype,
    GroupNorm,
    ResBlock,
    SelfAttention,
    Upsample,
    time_embedding,
    zero_init,
)
from diffusion_jax.models.networks.shared_options import CHANNELS, DROPOUT, DTYPE, NUM_RES_BLOCKS
from diffusion_jax.options import Option, kinds
from diffusion_jax.options.kinds import Choice, Either, Tuple

REMATS = ("none", "blocks")  # Or names of the results to keep.
Block = TypeVar("Block", bound=nn.Module)


class UNet(nn.Module):
    """Time-conditional U-Net; its output has the height and width of its input and is float32.

    At the CIFAR-10 setting of the paper (channels 128, channel_mult (1, 2, 2, 2), 2 blocks, attention at
    16) it has 35,746,307 parameters; at the 256×256 one, (1, 1, 2, 2, 4, 4), 113,673,219.

    Attributes:
      channels: Width of the first level.
      channel_mult: Width of each level in units of `channels`; each level halves the resolution.
      num_res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
      attention_resolutions: Heights of the feature maps that get self-attention. The middle always does.
      dropout: Rate inside the residual blocks, where dropout keys are given.
      num_classes: Number of classes to condition on; 0 for none. Label `num_classes` stands for no class.
      norm_groups: Groups of every norm, a divisor of `channels`; None: as `group_count` chooses.
      norm_eps: Added to the variances in the norms.
      out_channels: Channels of the output; None: those of the input.
      dtype: Type of the computation. Parameters, norms, softmax and output stay float32.
      remat: What the backward pass recomputes: "none"; "blocks", all of each block but its input; or
        names of `SAVEABLE`: all of each block but these results.
    """

    channels: Annotated[int, CHANNELS] = 128
    channel_mult: Annotated[
        Sequence[int],
        Option(
            Tuple(kinds.Int(1, 1_024), empty=False, longest=14),
            "width of each level in units of channels; each halves the resolution",
        ),
    ] = (1, 2, 2, 2)
    num_res_blocks: Annotated[int, NUM_RES_BLOCKS] = 2
    attention_resolutions: Annotated[
        Sequence[int],
        Option(Tuple(kinds.Int(1, 16_384)), "heights of the feature maps that get self-attention"),
    ] = (16,)
    dropout: Annotated[float, DROPOUT] = 0.0
    num_classes: int = 0
    norm_groups: Annotated[
        int | None,
        Option(
            kinds.Int(1, 16_384),
            "groups per norm, a divisor of channels; unset: up to 32, of at least four channels",
        ),
    ] = None
    norm_eps: Annotated[
        float, Option(kinds.Float(1e-12, 1), "epsilon that norms add to the variance")
    ] = 1e-6
    out_channels: int | None = None
    dtype: Annotated[Dtype, DTYPE] = jnp.float32
    remat: Annotated[
        str | Sequence[str],
        Option(
            Either(Choice(REMATS), Tuple(Choice(SAVEABLE), empty=False)),
            "what the backward pass recomputes, to save memory: blocks, or all of them but the results named",
            on_resume=True,
        ),
    ] = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        emb = self._embedding(t, labels)
        h = Conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for block in range(self.num_res_blocks):
                h = self._block(h, emb, mult, f"down_{level}_{block}", dropout_keys)
                skips.append(h)
            if level != len(self.channel_mult) - 1:
                h = Downsample(self.dtype, name=f"down_{level}_resize")(h)
                skips.append(h)

        top = self.channel_mult[-1]
        h = self._block(h, emb, top, "middle_0", dropout_keys, attention=True)
        h = self._block(h, emb, top, "middle_1", dropout_keys, attention=False)

        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, emb, mult, f"up_{level}_{block}", dropout_keys)
            if level != 0:
                h = Upsample(self.dtype, name=f"up_{level}_resize")(h)

        h = GroupNorm(self.norm_groups, self.norm_eps, swish=True, name="norm_out")(h)
        outputs = x.shape[-1] if self.out_channels is None else self.out_channels
        return Conv(outputs, kernel_init=zero_init, name="conv_out")(h)  # In float32.

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises an InputError for images whose size the levels do not divide."""
        factor = 2 ** (len(self.channel_mult) - 1)
        if image_shape[0] % factor or image_shape[1] % factor:
            raise InputError(
                f"images of {image_shape[0]}x{image_shape[1]} are not divisible by {factor}, the factor of "
                f"{len(self.channel_mult)} levels; pad or resize them, or shorten channel_mult"
            )

    def _embedding(self, t: Array, labels: Array | None) -> Array:
        """Embeds the time and, if conditional, adds an embedding of the class."""
        width = 4 * self.channels
        emb = time_embedding(t, self.channels)
        for i in range(2):
            emb = emb if i == 0 else nn.swish(emb)
            emb = Dense(width, dtype=self.dtype, name=f"time_dense_{i}")(emb)
        if self.num_classes > 0:
            emb = emb + ClassEmbedding(self.num_classes, width, self.dtype, name="class")(labels)
        return emb

    def _block(
        self,
        h: Array,
        emb: Array,
        mult: int,
        name: str,
        dropout_keys: Array | None,
        attention: bool | None = None,
    ) -> Array:
        """A residual block, and attention where this resolution (or `attention`) asks for it."""
        if attention is None:
            attention = h.shape[1] in self.attention_resolutions
        norm = partial(GroupNorm, self.norm_groups, self.norm_eps)
        res_block = self._recomputed(ResBlock)
        h = res_block(self.channels * mult, self.dropout, self.dtype, norm, name=f"{name}_res")(
            h, emb, dropout_keys
        )
        if attention:
            h = self._recomputed(SelfAttention)(self.dtype, norm, name=f"{name}_attention")(h)
        return h

    def _recomputed(self, block: type[Block]) -> type[Block]:
        """Returns the block with a backward pass that recomputes what `remat` says."""
        if self.remat == "none":
            return block
        kept = () if self.remat == "blocks" else self.remat
        return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(*kept))


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
    return None

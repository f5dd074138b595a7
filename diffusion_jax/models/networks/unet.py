"""The U-Net of Ho et al. (2020), Appendix B, and the family that grew from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.models.networks import unet_options as options
from diffusion_jax.models.networks.blocks import (
    Downsample,
    ResBlock,
    Resize,
    SelfAttention,
    Upsample,
    resized,
    summed,
)
from diffusion_jax.models.networks.embeddings import (
    ClassEmbedding,
    FourierEmbedding,
    time_embedding,
)
from diffusion_jax.models.networks.layers import Conv, Dense, Dtype, GroupNorm, zero_init
from diffusion_jax.models.networks.shared_options import CHANNELS, DROPOUT, DTYPE, NUM_RES_BLOCKS
from diffusion_jax.ops.parts import Parts, parts_of

Block = TypeVar("Block", bound=nn.Module)


class UNet(nn.Module):
    """Time-conditional U-Net; its output has the height and width of its input and is float32.

    The defaults are the network of Ho et al. (2020): at its CIFAR-10 setting (channels 128, channel_mult
    (1, 2, 2, 2), 2 blocks, attention at 16) it has 35,746,307 parameters; at the 256×256 one, (1, 1, 2, 2, 4, 4),
    113,673,219. `preset` has the options of other published networks.

    Attributes:
      channels: Width of the first level.
      channel_mult: Width of each level in units of `channels`; each level halves the resolution.
      num_res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
      attention_resolutions: Heights of the feature maps that get self-attention. The middle always does.
      dropout: Rate inside the residual blocks, where dropout keys are given.
      num_classes: Number of classes to condition on; 0 for none. Label `num_classes` stands for no class.
      norm_groups: Groups of every norm, a divisor of `channels`; None: as `group_count` chooses.
      norm_eps: Added to the variances in the norms.
      time_embedding: "ddpm": sinusoids, 1 / 10000 among the frequencies; "adm": sinusoids, without it; "fourier":
        random frequencies.
      time_scale: Factor of the time before that.
      time_features: Columns of that embedding; None: `channels`.
      embedding_width: Width of the two dense layers behind it; None: 4 `channels`.
      class_input: Where a class is added: to the "embedding", their output, or to their input, that of the "time".
      scale_shift: Whether the embedding scales and shifts the second norm of a block, or is added before it.
      num_heads: Heads of each attention; None: 1.
      head_channels: Channels of each head, in place of `num_heads`.
      decoder_attention: Which blocks of a decoder's level have attention: all "blocks", or the last of the "level".
      resample: How the resolution changes: a strided "conv", or pixels repeated and a conv; "pool", means and repeated
        pixels; "block", these within a residual block.
      symmetric_padding: Whether strided convolutions have zeros on all sides, as torch's, or below and right alone.
      project_resampled: Whether the shortcut of such a block is a linear map even if the number of channels stays.
      fir: Taps of the filter for changes of resolution, such as (1, 3, 3, 1); empty: none.
      skip_rescale: Whether each residual sum is divided by sqrt(2).
      input_pyramid: Whether smaller copies of the input are added in the encoder: "none"; "skip": each by a linear
        map; "residual": by convolutions, each of the sum before it.
      output_pyramid: Whether the output is a sum of outputs of all levels of the decoder: "none" or "skip".
      out_channels: Channels of the output; None: those of the input.
      dtype: Type of the computation. Parameters, norms, softmax and output stay float32.
      remat: What the backward pass recomputes: "none"; "blocks", all of each block but its input; or
        names of `SAVEABLE`: all of each block but these results.

    Example:
      >>> network = dj.as_functions(dj.UNet(channels=32, channel_mult=(1, 2)), (16, 16, 3))
      >>> shapes = jax.eval_shape(network.init, jax.random.key(0))
      >>> dj.models.count_parameters(shapes)
      940483
    """

    channels: Annotated[int, CHANNELS] = 128
    channel_mult: Annotated[Sequence[int], options.CHANNEL_MULT] = (1, 2, 2, 2)
    num_res_blocks: Annotated[int, NUM_RES_BLOCKS] = 2
    attention_resolutions: Annotated[Sequence[int], options.ATTENTION_RESOLUTIONS] = (16,)
    dropout: Annotated[float, DROPOUT] = 0.0
    num_classes: int = 0
    norm_groups: Annotated[int | None, options.NORM_GROUPS] = None
    norm_eps: Annotated[float, options.NORM_EPS] = 1e-6
    time_embedding: Annotated[str, options.TIME_EMBEDDING] = "ddpm"
    time_scale: Annotated[float, options.TIME_SCALE] = 1.0
    time_features: Annotated[int | None, options.TIME_FEATURES] = None
    embedding_width: Annotated[int | None, options.EMBEDDING_WIDTH] = None
    class_input: Annotated[str, options.CLASS_INPUT] = "embedding"
    scale_shift: Annotated[bool, options.SCALE_SHIFT] = False
    num_heads: Annotated[int | None, options.NUM_HEADS] = None
    head_channels: Annotated[int | None, options.HEAD_CHANNELS] = None
    decoder_attention: Annotated[str, options.DECODER_ATTENTION] = "blocks"
    resample: Annotated[str, options.RESAMPLE] = "conv"
    symmetric_padding: Annotated[bool, options.SYMMETRIC_PADDING] = False
    project_resampled: Annotated[bool, options.PROJECT_RESAMPLED] = False
    fir: Annotated[Sequence[float | int], options.FIR] = ()
    skip_rescale: Annotated[bool, options.SKIP_RESCALE] = False
    input_pyramid: Annotated[str, options.INPUT_PYRAMID] = "none"
    output_pyramid: Annotated[str, options.OUTPUT_PYRAMID] = "none"
    out_channels: int | None = None
    dtype: Annotated[Dtype, DTYPE] = jnp.float32
    remat: Annotated[str | Sequence[str], options.REMAT] = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        emb = self._embedding(t, labels)
        skips = self._encoder(x, emb, dropout_keys)
        h = self._middle(skips[-1], emb, dropout_keys)
        outputs = x.shape[-1] if self.out_channels is None else self.out_channels
        return self._decoder(h, skips, emb, outputs, dropout_keys)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises an InputError for images whose size the levels do not divide."""
        factor = 2 ** (len(self.channel_mult) - 1)
        if image_shape[0] % factor or image_shape[1] % factor:
            raise InputError(
                f"images of {image_shape[0]}x{image_shape[1]} are not divisible by {factor}, the factor of "
                f"{len(self.channel_mult)} levels; pad or resize them, or shorten channel_mult"
            )

    def _embedding(self, t: Array, labels: Array | None) -> Array:
        """Embeds the time and, if conditional, the class."""
        width = self.embedding_width or 4 * self.channels
        columns = self.time_features or self.channels
        t = t if self.time_scale == 1 else self.time_scale * t
        if self.time_embedding == "fourier":
            emb = FourierEmbedding(columns, name="fourier")(t)
        else:
            emb = time_embedding(t, columns, endpoint=self.time_embedding == "ddpm")
        of_class = partial(ClassEmbedding, self.num_classes, dtype=self.dtype, name="class")
        if self.num_classes and self.class_input == "time":
            emb = emb + of_class(features=columns)(labels)
        for i in range(2):
            emb = emb if i == 0 else nn.swish(emb)
            emb = Dense(width, dtype=self.dtype, name=f"time_dense_{i}")(emb)
        if self.num_classes and self.class_input == "embedding":
            emb = emb + of_class(features=width)(labels)
        return emb

    def _encoder(self, x: Array, emb: Array, keys: Array | None) -> list[Array]:
        """Returns the feature maps that the decoder sees, the last of which is the middle's input."""
        h, pyramid = Conv(self.channels, dtype=self.dtype, name="conv_in")(x), x
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            for block in range(self.num_res_blocks):
                h = self._block(h, emb, mult, f"down_{level}_{block}", keys)
                skips.append(h)
            if level != len(self.channel_mult) - 1:
                h = self._resized(h, emb, "halve", f"down_{level}_resize", keys)
                h, pyramid = self._fed(h, pyramid, f"down_{level}_input")
                skips.append(h)
        return skips

    def _middle(self, h: Array, emb: Array, keys: Array | None) -> Array:
        top = self.channel_mult[-1]
        h = self._block(h, emb, top, "middle_0", keys, attention=True)
        return self._block(h, emb, top, "middle_1", keys, attention=False)

    def _decoder(
        self, h: Array, skips: list[Array], emb: Array, outputs: int, keys: Array | None
    ) -> Array:
        """Returns the output, made of the middle's and, last first, of the encoder's feature maps."""
        pyramid = None
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for block in range(self.num_res_blocks + 1):
                has_attention = self._has_attention(h)
                if self.decoder_attention == "level":
                    has_attention &= block == self.num_res_blocks
                pair = h, skips.pop()
                h = self._block(pair, emb, mult, f"up_{level}_{block}", keys, has_attention)
            if level == 0 or self.output_pyramid == "skip":
                name = "out" if level == 0 else f"up_{level}_out"
                norm = GroupNorm(self.norm_groups, self.norm_eps, swish=True, name=f"norm_{name}")
                conv = Conv(outputs, kernel_init=zero_init, name=f"conv_{name}")  # In float32.
                added = conv(norm(h))
                pyramid = added if pyramid is None else resized(pyramid, "double", self.fir) + added
            if level != 0:
                h = self._resized(h, emb, "double", f"up_{level}_resize", keys)
        assert pyramid is not None
        return pyramid

    def _has_attention(self, h: Array) -> bool:
        return h.shape[1] in self.attention_resolutions

    def _block(
        self,
        x: Parts,
        emb: Array,
        mult: int,
        name: str,
        keys: Array | None,
        attention: bool | None = None,
    ) -> Array:
        """A residual block, and attention where this resolution (or `attention`) asks for it."""
        attention = self._has_attention(parts_of(x)[0]) if attention is None else attention
        h = self._res_block(self.channels * mult, name=f"{name}_res")(x, emb, keys)
        if attention:
            heads = self._heads(h.shape[-1])
            of_pixels = partial(
                self._recomputed(SelfAttention), heads=heads, rescale=self.skip_rescale
            )
            h = of_pixels(self.dtype, self._norm, name=f"{name}_attention")(h)
        return h

    def _heads(self, channels: int) -> int:
        return channels // self.head_channels if self.head_channels else self.num_heads or 1

    @property
    def _norm(self) -> partial[GroupNorm]:
        return partial(GroupNorm, self.norm_groups, self.norm_eps)

    def _res_block(self, features: int, name: str, resize: Resize | None = None) -> nn.Module:
        return self._recomputed(ResBlock)(
            features,
            self.dropout,
            self.dtype,
            self._norm,
            scale_shift=self.scale_shift,
            resize=resize,
            fir=() if resize is None else self.fir,
            project=resize is not None and self.project_resampled,
            rescale=self.skip_rescale,
            name=name,
        )

    def _resized(
        self, h: Array, emb: Array, resize: Resize, name: str, keys: Array | None
    ) -> Array:
        """Halves or doubles the resolution."""
        if self.resample == "pool":
            return resized(h, resize, self.fir)
        if self.resample == "block":
            return self._res_block(h.shape[-1], name, resize)(h, emb, keys)
        if resize == "double":
            return Upsample(self.dtype, self.fir, name=name)(h)
        return Downsample(self.dtype, fir=self.fir, symmetric=self.symmetric_padding, name=name)(h)

    def _fed(self, h: Array, pyramid: Array, name: str) -> tuple[Array, Array]:
        """Adds a smaller copy of the input, made of the last one; returns the sum and that copy."""
        if self.input_pyramid == "skip":
            pyramid = resized(pyramid, "halve", self.fir)
            return h + Dense(h.shape[-1], dtype=self.dtype, name=name)(pyramid), pyramid
        if self.input_pyramid == "residual":
            smaller = Downsample(self.dtype, h.shape[-1], self.fir, name=name)(pyramid)
            h = summed(smaller, h, self.skip_rescale)
            return h, h
        return h, pyramid

    def _recomputed(self, block: type[Block]) -> type[Block]:
        """Returns the block with a backward pass that recomputes what `remat` says."""
        if self.remat == "none":
            return block
        kept = () if self.remat == "blocks" else self.remat
        return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(*kept))

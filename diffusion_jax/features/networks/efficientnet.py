"""EfficientNet-Lite0 (Tan & Le, 2019; the variant of 2020 for small devices), its norms part of the convolutions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.models.networks.layers import Conv, Dense

NUM_FEATURES, NUM_CLASSES = 1280, 1000
EPSILON = 1e-3  # Of the batch norms.
_STEM = 32


class Block(NamedTuple):
    """An inverted bottleneck.

    Attributes:
      inputs: Channels of the input.
      outputs: Channels of the output.
      expansion: Channels in between, as a multiple of the input's.
      kernel: Side of the depthwise convolution.
      stride: Its stride.
    """

    inputs: int
    outputs: int
    expansion: int
    kernel: int
    stride: int


# Blocks, kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _blocks() -> tuple[Block, ...]:
    found, channels = [], _STEM
    for count, kernel, stride, expansion, outputs in _STAGES:
        for i in range(count):
            found.append(Block(channels, outputs, expansion, kernel, stride if i == 0 else 1))
            channels = outputs
    return tuple(found)


BLOCKS = _blocks()


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b oh ow c"]:
    """Returns the convolution of each channel with a kernel of its own, under "SAME" padding.

    It is a sum of shifted images, which XLA makes one loop of: 3 to 20 times as fast on the CPU as its own.
    """
    side = kernel.shape[0]
    rows, columns = lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    height, width = ((n - side) // stride * stride + 1 for n in x.shape[1:3])
    shifted = (
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j][None, None, None, :]
        for i, j in itertools.product(range(side), repeat=2)
    )
    return functools.reduce(jnp.add, shifted)


class Depthwise(nn.Module):
    """Depthwise convolution and a bias."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        shape = (self.kernel, self.kernel, x.shape[3])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[2:])
        return depthwise(x, kernel, self.stride) + bias[None, None, None, :]


class EfficientNetLite0(nn.Module):
    """The network up to its last linear layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        """Returns the features, which are means over the pixels."""
        x = nn.relu6(Conv(_STEM, stride=2, name="stem")(x))
        for i, block in enumerate(BLOCKS):
            y, width = x, block.inputs * block.expansion
            if block.expansion > 1:
                y = nn.relu6(Dense(width, name=f"expand_{i}")(y))
            y = nn.relu6(Depthwise(block.kernel, block.stride, name=f"depthwise_{i}")(y))
            y = Dense(block.outputs, name=f"project_{i}")(y)
            x = x + y if block.stride == 1 and block.inputs == block.outputs else y
        return nn.relu6(Dense(NUM_FEATURES, name="head")(x)).mean(axis=(1, 2))


def _layers() -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Returns, by our names, the names of convolution and norm in the port to torch, and the kernel's shape."""
    layers = {"stem": ("_conv_stem", "_bn0", (_STEM, 3, 3, 3))}
    for i, block in enumerate(BLOCKS):
        name, width = f"_blocks.{i}.", block.inputs * block.expansion
        if block.expansion > 1:
            shape = (width, block.inputs, 1, 1)
            layers[f"expand_{i}"] = (f"{name}_expand_conv", f"{name}_bn0", shape)
        shape = (width, 1, block.kernel, block.kernel)
        layers[f"depthwise_{i}"] = (f"{name}_depthwise_conv", f"{name}_bn1", shape)
        shape = (block.outputs, width, 1, 1)
        layers[f"project_{i}"] = (f"{name}_project_conv", f"{name}_bn2", shape)
    layers["head"] = ("_conv_head", "_bn1", (NUM_FEATURES, BLOCKS[-1].outputs, 1, 1))
    return layers


_OF_NORM = ("weight", "bias", "running_mean", "running_var")


def tensors() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of the port to torch, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "_fc.weight": (NUM_CLASSES, NUM_FEATURES),
        "_fc.bias": (NUM_CLASSES,),
    }
    for conv, norm, shape in _layers().values():
        shapes[f"{conv}.weight"] = shape
        shapes |= {f"{norm}.{part}": shape[:1] for part in _OF_NORM}
    return shapes


def fold(
    found: Mapping[str, Float[np.ndarray, ...]],
) -> dict[str, dict[str, Float[np.ndarray, ...]]]:
    """Returns the parameters of an `EfficientNetLite0`: each norm is part of the convolution before it.

    Args:
      found: The arrays that `tensors` names.
    """
    params = {}
    for ours, (conv, norm, _) in _layers().items():
        gain, shift, mean, var = (found[f"{norm}.{part}"].astype(np.float64) for part in _OF_NORM)
        gain = gain / np.sqrt(var + EPSILON)
        kernel = found[f"{conv}.weight"].transpose(2, 3, 1, 0) * gain
        if ours != "stem":  # A matrix, or a kernel of each channel.
            kernel = kernel[0, 0] if kernel.shape[0] == 1 else kernel[:, :, 0]
        params[ours] = {
            "kernel": kernel.astype(np.float32),
            "bias": (shift - mean * gain).astype(np.float32),
        }
    return params

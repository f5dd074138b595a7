"""Vision transformer of DINOv2 (Oquab et al., 2023), and its weights as Hugging Face's transformers names them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.features.resize import resize_matrix
from diffusion_jax.models.networks.layers import Dense
from diffusion_jax.ops.attention import attention

EPSILON = 1e-6  # Of the norms.
OFFSET = 0.1  # What the model of torch hub adds to the new size of the position embeddings.

# Of a layer: our name, transformers' name, and the inputs and outputs as multiples of the width.
_DENSE = {
    "query": ("attention.attention.query", (1, 1)),
    "key": ("attention.attention.key", (1, 1)),
    "value": ("attention.attention.value", (1, 1)),
    "attention_out": ("attention.output.dense", (1, 1)),
    "fc1": ("mlp.fc1", (1, 4)),
    "fc2": ("mlp.fc2", (4, 1)),
}
_VECTORS = {
    "norm1.scale": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "scale1": "layer_scale1.lambda1",
    "norm2.scale": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "scale2": "layer_scale2.lambda1",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a vision transformer.

    Attributes:
      width: Length of a token.
      depth: Number of layers.
      heads: Number of attention heads.
      patch: Side of a patch, in pixels.
      trained_grid: Patches along a side of the images that it was trained on.
    """

    width: int
    depth: int
    heads: int
    patch: int
    trained_grid: int


LARGE = Size(width=1024, depth=24, heads=16, patch=14, trained_grid=37)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, name=name)


def _by_head(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b*{heads} n c//{heads}"]:
    b, n, width = x.shape
    x = x.reshape(b, n, heads, width // heads).swapaxes(1, 2)
    return x.reshape(b * heads, n, -1)


def _joined(x: Float[Array, "bh n d"], heads: int) -> Float[Array, "bh//{heads} n d*{heads}"]:
    x = x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


class Layer(nn.Module):
    """Attention and a perceptron, each after a norm, scaled per channel and added."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], _: None = None
    ) -> tuple[Float[Array, "b n c"], None]:
        """Returns the tokens, and None, as a loop over layers needs it."""
        width = x.shape[2]
        y = _norm("norm1")(x)
        q, k, v = (
            _by_head(Dense(width, name=name)(y), self.heads) for name in ("query", "key", "value")
        )
        y = Dense(width, name="attention_out")(_joined(attention(q, k, v), self.heads))
        x = x + self._scaled("scale1", y)
        y = nn.gelu(Dense(4 * width, name="fc1")(_norm("norm2")(x)), approximate=False)
        return x + self._scaled("scale2", Dense(width, name="fc2")(y)), None

    def _scaled(self, name: str, y: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return y * self.param(name, nn.initializers.ones, (y.shape[2],))[None, None, :]


class VisionTransformer(nn.Module):
    """Patches, a class token, layers, and the class token after a norm.

    Attributes:
      size: Size of the network.
    """

    size: Size

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns the features of normalized images, whose sides are multiples of the patch's."""
        size = self.size
        b, height, width, channels = x.shape
        rows, columns = height // size.patch, width // size.patch
        x = x.reshape(b, rows, size.patch, columns, size.patch, channels).swapaxes(2, 3)
        x = Dense(size.width, name="patches")(x.reshape(b, rows * columns, -1))
        first = self.param("class_token", nn.initializers.zeros, (size.width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, size.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.zeros, x.shape[1:])[None]
        # A loop: one layer is compiled instead of 24.
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=size.depth
        )
        x, _ = layers(size.heads, name="layers")(x, None)
        return _norm("norm")(x[:, 0])


def tensors(size: Size) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of transformers' `Dinov2Model` that count here, by name."""
    width, positions = size.width, size.trained_grid**2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, positions, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, size.patch, size.patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for i, (name, (rows, columns)) in itertools.product(range(size.depth), _DENSE.values()):
        shapes[f"encoder.layer.{i}.{name}.weight"] = (columns * width, rows * width)
        shapes[f"encoder.layer.{i}.{name}.bias"] = (columns * width,)
    for i, name in itertools.product(range(size.depth), _VECTORS.values()):
        shapes[f"encoder.layer.{i}.{name}"] = (width,)
    return shapes


def from_transformers(
    found: Mapping[str, Float[np.ndarray, ...]],
    size: Size,
    image_size: int,
    positions: Literal["hub", "transformers"] = "hub",
) -> dict[str, Any]:
    """Returns the parameters of a `VisionTransformer`.

    Args:
      found: The arrays that `tensors` names.
      size: Size of the network.
      image_size: Side of the images, to which the position embeddings are resized.
      positions: How these are resized, by cubic interpolation in either case: as the model of torch hub does, with a
        scale of (new + 0.1) / old, which EDM2 (Karras et al., 2024) measures with, or with new / old.
    """
    kernel = found["embeddings.patch_embeddings.projection.weight"]
    offset = OFFSET if positions == "hub" else 0.0
    grid = image_size // size.patch
    return {
        "patches": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, size.width),
            "bias": found["embeddings.patch_embeddings.projection.bias"],
        },
        "class_token": found["embeddings.cls_token"][0, 0],
        "positions": _resized(found["embeddings.position_embeddings"][0], grid, offset),
        "layers": _layers(found, size.depth),
        "norm": {"scale": found["layernorm.weight"], "bias": found["layernorm.bias"]},
    }


def _resized(old: Float[np.ndarray, "n c"], grid: int, offset: float) -> Float[np.ndarray, "m c"]:
    """Returns the embedding of the class token, and those of the patches resized."""
    side, width = round((len(old) - 1) ** 0.5), old.shape[1]
    if side == grid:
        return old
    matrix = resize_matrix(side, grid, "bicubic", (grid + offset) / side)
    patches = old[1:].reshape(side, side, width)
    new = np.einsum("pi,ijc,qj->pqc", matrix, patches, matrix, optimize=True)
    return np.concatenate([old[:1], new.reshape(-1, width)]).astype(np.float32)


def _layers(found: Mapping[str, np.ndarray], depth: int) -> dict[str, Any]:
    """Returns the parameters of all layers, each an array with an axis of layers first."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([found[f"encoder.layer.{i}.{name}"] for i in range(depth)])

    layers: dict[str, Any] = {}
    for ours, (theirs, _) in _DENSE.items():
        kernel = stacked(f"{theirs}.weight").swapaxes(1, 2)
        layers[ours] = {"kernel": kernel, "bias": stacked(f"{theirs}.bias")}
    for ours, theirs in _VECTORS.items():
        module, dot, kind = ours.partition(".")
        if dot:
            layers.setdefault(module, {})[kind] = stacked(theirs)
        else:
            layers[ours] = stacked(theirs)
    return layers

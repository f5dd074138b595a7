"""The Inception-v3 of 2015 whose features define the FID (Szegedy et al., 2016; Heusel et al., 2017), in Linen.

Layers have the names of torchvision's `inception_v3`. Two things differ from that network, as they do in the graph of
2015: average pools leave out what is beyond the border, and the last block has a max pool in its place. Batch
normalization is part of each convolution (`fold`). All 1x1 convolutions of a block are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.convolution import conv

_EPSILON = 1e-3  # Of the batch normalization.
Images = Float[Array, "_ _ _ _"]


class Conv(nn.Module):
    """Convolution with a bias, then relu, and a max pool of stride 2 if there is one.

    The pool comes before the bias and the relu: they keep the order of numbers, and have fewer pixels after it.

    Attributes:
      features: Number of output channels.
      kernel: Height and width of the kernel.
      stride: Step of both axes.
      padding: "SAME" or "VALID".
      pool: Whether there is a max pool.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    pool: bool = False

    @nn.compact
    def __call__(self, x: Images) -> Images:
        kernel, bias = _weights(self, (*self.kernel, x.shape[-1]), self.features)
        y = conv(x, kernel, self.stride, self.padding, exact=True)
        return nn.relu((max_pool(y) if self.pool else y) + bias)


class _Weights(nn.Module):
    """Kernel and bias (1x1x1xC) of a 1x1 convolution that `_branches` does together with others."""

    features: int

    @nn.compact
    def __call__(self, x: Images) -> tuple[Array, Array]:
        return _weights(self, (1, 1, x.shape[-1]), self.features)


def _weights(module: nn.Module, shape: tuple[int, int, int], features: int) -> tuple[Array, Array]:
    kernel = module.param("kernel", nn.initializers.he_normal(), (*shape, features))
    bias = module.param("bias", nn.initializers.zeros, (features,))
    return kernel, bias[None, None, None]


def _branches(x: Images, pool: int = 0, **features: int) -> tuple[Images, ...]:
    """Returns 1x1 convolutions of x with relu, given by name and features, and `branch_pool` after an average pool.

    The average of linear functions is that of the function of the average, so the pool has the fewer channels.
    """
    if pool:
        features["branch_pool"] = pool
    kernels, biases = zip(*(_Weights(n, name=name)(x) for name, n in features.items()), strict=True)
    kernel = jnp.concatenate(kernels, axis=-1)[0, 0]
    y = jnp.einsum("bhwc,cd->bhwd", x, kernel, precision=lax.Precision.HIGHEST)
    ends = np.cumsum([bias.size for bias in biases])
    parts = jnp.split(y, ends[:-1], axis=-1)
    if pool:
        parts[-1] = average_pool(parts[-1])
    return tuple(nn.relu(part + bias) for part, bias in zip(parts, biases, strict=True))


def average_pool(x: Images) -> Images:
    """Returns the means of the pixels in windows of 3x3 that are inside the image."""

    def sums(x: Any) -> Any:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return sums(x) / sums(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def max_pool(x: Images, stride: int = 2, padding: str = "VALID") -> Images:
    """Returns the largest pixels in windows of 3x3."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _chain(x: Images, prefix: str, *layers: tuple[int, tuple[int, int]], start: int = 2) -> Images:
    for i, (features, kernel) in enumerate(layers, start):
        x = Conv(features, kernel, name=f"{prefix}_{i}")(x)
    return x


def _join(*parts: Images) -> Images:
    return jnp.concatenate(parts, axis=-1)


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and twice 3x3 pixels, and an average pool of `pool` features."""

    pool: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        one, five, three, pooled = _branches(
            x, self.pool, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64
        )
        five = _chain(five, "branch5x5", (64, (5, 5)))
        three = _chain(three, "branch3x3dbl", (96, (3, 3)), (96, (3, 3)))
        return _join(one, five, three, pooled)


class BlockB(nn.Module):
    """From 35x35 to 17x17 pixels."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        (double,) = _branches(x, branch3x3dbl_1=64)
        double = _chain(double, "branch3x3dbl", (96, (3, 3)))
        double = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        three = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        return _join(three, double, max_pool(x))


class BlockC(nn.Module):
    """Branches of 1x1, 7x7 and twice 7x7 pixels, by rows and by columns, with `inner` features inside."""

    inner: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        one, seven, double, pooled = _branches(
            x, 192, branch1x1=192, branch7x7_1=self.inner, branch7x7dbl_1=self.inner
        )
        row, column, inner = (1, 7), (7, 1), self.inner
        seven = _chain(seven, "branch7x7", (inner, row), (192, column))
        double = _chain(
            double, "branch7x7dbl", (inner, column), (inner, row), (inner, column), (192, row)
        )
        return _join(one, seven, double, pooled)


class BlockD(nn.Module):
    """From 17x17 to 8x8 pixels."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        three, seven = _branches(x, branch3x3_1=192, branch7x7x3_1=192)
        three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = _chain(seven, "branch7x7x3", (192, (1, 7)), (192, (7, 1)))
        seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return _join(three, seven, max_pool(x))


class BlockE(nn.Module):
    """Branches whose ends are 1x3 and 3x1 pixels beside each other; `largest`: with a max pool."""

    largest: bool

    @nn.compact
    def __call__(self, x: Images) -> Images:
        one, three, double, *pooled = _branches(
            x,
            0 if self.largest else 192,
            branch1x1=320,
            branch3x3_1=384,
            branch3x3dbl_1=448,
        )
        double = _chain(double, "branch3x3dbl", (384, (3, 3)))
        ends = [
            Conv(384, kernel, name=name)(part)
            for part, prefix in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
            for kernel, name in (((1, 3), prefix + "a"), ((3, 1), prefix + "b"))
        ]
        if self.largest:
            pooled = [Conv(192, name="branch_pool")(max_pool(x, 1, "SAME"))]
        return _join(one, *ends, *pooled)


class Inception(nn.Module):
    """The network up to its last pool; images are of 299x299 pixels in -1 to 1."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = Conv(64, (3, 3), pool=True, name="Conv2d_2b_3x3")(x)
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = Conv(192, (3, 3), 1, "VALID", pool=True, name="Conv2d_4a_3x3")(x)
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = BlockA(pool, name=f"Mixed_{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = BlockC(inner, name=f"Mixed_{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(largest=False, name="Mixed_7b")(x)
        x = BlockE(largest=True, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))


def _layers() -> dict[str, Any]:
    """Returns the shapes of the parameters."""
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if "kernel" in value:
            yield prefix + name, value["kernel"].shape
        else:
            yield from _paths(value, f"{prefix}{name}.")


def tensors() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of torch's tensors, by name, without the last layer's."""
    found = {}
    for name, (height, width, channels, features) in _paths(_layers()):
        found[f"{name}.conv.weight"] = (features, channels, height, width)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = (features,)
    return found


def fold(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters, from torch's tensors: each convolution with its batch normalization."""

    def folded(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        if "kernel" not in tree:
            return {name: folded(value, f"{prefix}{name}.") for name, value in tree.items()}

        def exact(name: str) -> np.ndarray:
            return weights[prefix + name].astype(np.float64)

        scale = exact("bn.weight") / np.sqrt(exact("bn.running_var") + _EPSILON)
        kernel = exact("conv.weight").transpose(2, 3, 1, 0) * scale
        bias = exact("bn.bias") - exact("bn.running_mean") * scale
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    return folded(_layers(), "")

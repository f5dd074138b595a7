"""Networks as pairs of pure functions; the only package that imports flax.linen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.errors import InputError, expect
from diffusion_jax.models.networks.classifier_unet import ClassifierUNet
from diffusion_jax.models.networks.mlp import MLP
from diffusion_jax.models.networks.presets import PRESETS, preset
from diffusion_jax.models.networks.unet import UNet
from diffusion_jax.models.networks.unet_options import misfit
from diffusion_jax.options import Component, Registry

__all__ = [
    "MLP",
    "NETWORKS",
    "PRESETS",
    "NetworkKind",
    "ApplyFn",
    "ClassifierUNet",
    "Model",
    "UNet",
    "as_functions",
    "count_parameters",
    "preset",
]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkKind(Component[Any]):
    """A network; `make` maps what it asks for and its options to a Linen module, or a `Model` of another library.

    It may ask for num_classes, out_channels and image_shape, (H, W, C).

    Attributes:
      misfit: (module, (H, W, C) of the images) -> why it does not fit them, in terms of the config; None if it does.
    """

    misfit: Callable[[Any, tuple[int, int, int]], str | None] = lambda module, image_shape: None


NETWORKS: Registry[NetworkKind] = Registry(
    "model",
    {
        "unet": NetworkKind(UNet, "the U-Net of Ho et al. (2020)", misfit=misfit),
        "mlp": NetworkKind(MLP, "a residual perceptron for low-dimensional data"),
    },
    given=("num_classes", "out_channels", "image_shape", "parent", "name"),
)


class ApplyFn(Protocol):
    """The network as a function of its parameters; dropout is on if keys are given, one per image.

    A denoiser's output has the images' height and width, a classifier's is logits.
    """

    def __call__(
        self,
        params: PyTree,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, " b *out"]: ...


class Model(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x, t, labels, dropout_keys) -> output`."""

    init: Callable[[Key[Array, ""]], Any]
    apply: ApplyFn


def as_functions(module: nn.Module | Model, image_shape: tuple[int, int, int]) -> Model:
    """Returns a Linen network as pure functions for images of `image_shape` (H, W, C); a `Model` unchanged.

    Raises:
      InputError: A shape that the module does not take; when the network is called, images with other channels, labels
        for a network without classes, or none for one with classes.

    Example:
      >>> network = dj.as_functions(dj.models.MLP(channels=8, num_res_blocks=1), (4, 4, 1))
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.zeros((2, 4, 4, 1)), jnp.zeros(2)).shape
      (2, 4, 4, 1)
    """
    if isinstance(module, Model):
        return module
    expect("module", module, nn.Module, "a Linen module, such as UNet(channels=32)")
    num_classes = getattr(module, "num_classes", 0)
    conditional = num_classes > 0
    if (check := getattr(module, "check", None)) is not None:
        check(image_shape)

    def init(key: Key[Array, ""]) -> Any:
        labels = jnp.zeros((1,), jnp.int32) if conditional else None
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
        return jax.jit(module.init)(key, x, t, labels)["params"]

    def apply(
        params: PyTree,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, " b *out"]:
        _check(x, labels, image_shape, num_classes)
        params = jax.tree.map(jnp.asarray, params)  # They may be NumPy's, as other tools read them.
        out = module.apply({"params": params}, x, t, labels, dropout_keys)
        assert isinstance(out, jax.Array)
        return out

    return Model(init, apply)


def _check(x: Any, labels: Any, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises an InputError for inputs that a network would silently misinterpret."""
    if x.ndim != 4 or x.shape[-1] != image_shape[-1]:
        raise InputError(
            f"images have shape {x.shape}; the network is for (b, {', '.join(map(str, image_shape))}), channels last"
        )
    if labels is None:
        if num_classes > 0:
            raise InputError(
                f"labels are missing: the network has {num_classes} classes; label {num_classes} stands for none"
            )
        return
    if num_classes == 0:
        raise InputError(
            "labels are given to a network without classes, which would ignore them; set num_classes, or leave them out"
        )
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; they must be {len(x)} integers, one per image"
        )
    if isinstance(labels, Tracer) or not len(labels):
        return
    low, high = np.asarray(labels).min(), np.asarray(labels).max()
    if not 0 <= low <= high <= num_classes:
        raise InputError(
            f"labels go from {low} to {high}; they must be in 0 to {num_classes}, the last for no class"
        )


def count_parameters(params: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

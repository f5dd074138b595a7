"""Networks as pairs of pure functions; the only package that knows of flax.linen."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.unet import UNet

__all__ = ["MLP", "MODELS", "ApplyFn", "Model", "UNet", "as_functions", "count_parameters"]

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "mlp": MLP}


class ApplyFn(Protocol):
    """The network as a function of its parameters; dropout acts where keys are given, one an image."""

    def __call__(
        self,
        params: PyTree,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]: ...


class Model(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x, t, labels, dropout_keys) -> output`."""

    init: Callable[[Key[Array, ""]], Any]
    apply: ApplyFn


def as_functions(module: nn.Module, image_shape: tuple[int, int, int]) -> Model:
    """Returns a Linen denoiser as pure functions for images of `image_shape` (H, W, C)."""
    conditional = getattr(module, "num_classes", 0) > 0

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
    ) -> Float[Array, "b h w d"]:
        params = jax.tree.map(jnp.asarray, params)  # They may be NumPy's, as other tools read them.
        out = module.apply({"params": params}, x, t, labels, dropout_keys)
        assert isinstance(out, jax.Array)
        return out

    return Model(init, apply)


def count_parameters(params: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

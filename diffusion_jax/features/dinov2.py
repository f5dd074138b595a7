"""Features of DINOv2 ViT-L/14 (Oquab et al., 2023), for the distance FD-DINOv2 (Stein et al., 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from diffusion_jax.features.extractor import Extractor
from diffusion_jax.features.resize import resize
from diffusion_jax.features.weights import WEIGHTS, Published, load_weights

PUBLISHED = Published(
    "model.safetensors",
    "https://huggingface.co/facebook/dinov2-large/resolve/main/model.safetensors",
    1_217_522_888,
    "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
)
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet's colors.


def preprocess(images: UInt8[Array, "b h w c"]) -> Float[Array, "b 224 224 3"]:
    """Returns the network's inputs as NVlabs/edm2 prepares them: resized pixels are neither rounded nor clipped."""
    x = resize(jnp.asarray(images, jnp.float32), (SIZE, SIZE), "bicubic_antialias") / 255
    mean, std = (jnp.array(color, jnp.float32)[None, None, None, :] for color in (MEAN, STD))
    return (x - mean) / std


def dinov2(cache_dir: Path, *, weights: Annotated[str | None, WEIGHTS] = None) -> Extractor:
    """Returns the extractor, with the weights of `facebook/dinov2-large`: the class token after the last norm.

    Args:
      cache_dir: Folder for the downloaded file.
      weights: See `load_weights`.

    Raises:
      InputError: The weights are not there, or are not those of this network.
    """
    from diffusion_jax.features.networks.vit import (  # Slow to import.
        LARGE,
        VisionTransformer,
        from_transformers,
        tensors,
    )

    found, sha256 = load_weights(PUBLISHED, weights, cache_dir, tensors(LARGE))
    network = VisionTransformer(LARGE)

    def apply(params: Any, images: UInt8[Array, "b h w c"]) -> Float[Array, "b 1024"]:
        # GPUs and TPUs would round what they multiply to 11 or 8 bits.
        with jax.default_matmul_precision("highest"):
            return network.apply({"params": params}, preprocess(images))  # pyright: ignore[reportReturnType]

    return Extractor(
        "dinov2",
        from_transformers(found, LARGE, SIZE),
        apply,
        LARGE.width,
        "antialiased bicubic 224x224 (edm2)",
        sha256,
        published=PUBLISHED.is_of(sha256),
    )

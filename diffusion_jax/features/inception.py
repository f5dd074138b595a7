"""Features of the Inception-v3 that defines the FID."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax.features.extractor import Extractor
from diffusion_jax.features.resize import resize
from diffusion_jax.features.weights import WEIGHTS, Published, load_weights
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Choice

_NAME = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = Published(
    _NAME,
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_NAME}",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SIZE, NUM_FEATURES, _CLASSES = 299, 2048, 1008


class _Preprocessing(NamedTuple):
    """A rule of `resize`, its description, and the scaling of pixels in 0 to 255 thereafter."""

    rule: str
    description: str
    scaled: Callable[[Array], Array]


def _around_128(x: Array) -> Array:
    return (x - 128) / 128


PREPROCESSING = {
    "pytorch": _Preprocessing(
        "bilinear", "bilinear 299x299 (pytorch-fid)", lambda x: x * (2 / 255) - 1
    ),
    "clean": _Preprocessing(
        "bicubic_antialias",
        "antialiased bicubic 299x299 (clean-fid)",
        lambda x: _around_128(jnp.clip(x, 0, 255)),
    ),
    "tensorflow": _Preprocessing(
        "bilinear_tensorflow", "bilinear 299x299 (TensorFlow 1)", _around_128
    ),
}


def preprocess(images: UInt8[Array, "b h w c"], how: str) -> Float[Array, "b 299 299 3"]:
    """Returns the network's inputs; `how` is a name in `PREPROCESSING`."""
    rule, _, scaled = PREPROCESSING[how]
    x = scaled(resize(images.astype(jnp.float32), (SIZE, SIZE), rule))
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def inception(
    cache_dir: Path,
    *,
    weights: Annotated[str | None, WEIGHTS] = None,
    resize: Annotated[
        str,
        Option(
            Choice(tuple(PREPROCESSING)),
            "resizing and scaling as in pytorch-fid, clean-fid or TensorFlow's graph of 2015 (torch-fidelity, EDM)",
        ),
    ] = "pytorch",
) -> Extractor:
    """Returns the extractor, whose logits leave out the last layer's bias, as those of the Inception score do."""
    from diffusion_jax.features.networks import inception as network  # Slow to import.

    shapes = {**network.tensors(), "fc.weight": (_CLASSES, NUM_FEATURES)}
    found, sha256 = load_weights(PUBLISHED, weights, cache_dir, shapes)
    last = found["fc.weight"].T

    def apply(params: Any, images: UInt8[Array, "b h w c"]) -> Float[Array, "b 2048"]:
        return network.Inception().apply({"params": params}, preprocess(images, resize))  # pyright: ignore[reportReturnType]

    def logits(features: Float[np.ndarray, "n 2048"]) -> Float[np.ndarray, "n 1008"]:
        return features @ last

    return Extractor(
        "inception",
        network.fold(found),
        apply,
        NUM_FEATURES,
        PREPROCESSING[resize].description,
        sha256,
        logits,
        published=PUBLISHED.is_of(sha256),
    )

"""The interface of feature extractors: networks whose features stand for images in metrics of sample quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A network with its weights, and the preprocessing of its images.

    Attributes:
      name: Name that stands in every result, such as "inception".
      params: The weights, a pytree of arrays on the host.
      apply: (params, images) -> features, a pure function; called inside `jit`. Images are uint8, B×H×W×3 or B×H×W×1,
        of any size; gray ones count as RGB with three equal channels.
      num_features: Length of an image's features.
      preprocessing: How images are resized and scaled, such as "bilinear 299x299 (pytorch-fid)"; two results of
        different preprocessing cannot be compared.
      weights_sha256: Checksum that identifies the weights: of their file, or, if they were trained here, of the arrays.
      logits: Features -> logits of the network's own classes, on the host; None if it has no classes.
      published: Whether the weights are verified to be the published ones; if not, the Fréchet distance of inception is
        no FID.
    """

    name: str
    params: Any
    apply: Callable[[Any, UInt8[Array, "b h w c"]], Float[Array, "b d"]]
    num_features: int
    preprocessing: str
    weights_sha256: str
    logits: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]] | None = None
    published: bool = False

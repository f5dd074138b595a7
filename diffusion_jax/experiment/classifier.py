"""The classifier of noisy images that guides a run's samples, from the file of another library."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.addresses import expand
from diffusion_jax.errors import InputError, reason
from diffusion_jax.features.weights import checksum
from diffusion_jax.interchange.openai_classifier import ForeignClassifier, read_classifier
from diffusion_jax.models.networks import as_functions
from diffusion_jax.processes.process import Point

SETTINGS = "sampler.classifier_settings"
# (x_t, point) -> gradient of the log probability of each image's class.
Gradient = Callable[[Float[Array, "b h w c"], Point], Float[Array, "b h w c"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of noisy images.

    Attributes:
      foreign: Its network and parameters.
      sha256: Of its file.
      time_scale: Factor of the time that it is given, that of the diffusion model.
    """

    foreign: ForeignClassifier
    sha256: str
    time_scale: float

    @property
    def num_classes(self) -> int:
        """Number of classes that it tells apart."""
        assert self.foreign.network.out_channels is not None
        return self.foreign.network.out_channels

    def gradient(self, params: Any, labels: Int[Array, " b"]) -> Gradient:
        """Returns the gradient by x_t of log p(class | x_t, t).

        Args:
          params: Its parameters, which a compiled program takes as an argument.
          labels: Class of each image.
        """
        network = as_functions(self.foreign.network, self.foreign.image_shape)

        def log_probability(x_t: Array, point: Point) -> Array:
            logits = network.apply(params, x_t, self.time_scale * point.time)
            of_classes = jax.nn.log_softmax(logits)
            return jnp.take_along_axis(of_classes, labels[:, None], axis=1).sum()

        return jax.grad(log_probability)


def load_classifier(
    path: str, settings: str, image_shape: tuple[int, int, int], time_scale: float
) -> Classifier:
    """Returns the classifier of a file; the last one is kept.

    Args:
      path: The field `sampler.classifier`.
      settings: The field `sampler.classifier_settings`.
      image_shape: (H, W, C) of the images.
      time_scale: Factor of the time that the diffusion model's network has.

    Raises:
      InputError: There is no such file, it is of another network than its settings say, or of other images.
    """
    file = Path(expand(path))
    try:
        stat = file.stat()
        foreign, sha256 = _read(file, settings, (stat.st_mtime_ns, stat.st_size))
    except InputError as error:
        raise InputError(f"sampler.classifier: {path}: {reason(error)}") from error
    except OSError as error:
        raise InputError(f"sampler.classifier: cannot read {path}: {reason(error)}") from error
    if foreign.image_shape != image_shape:
        size, own = ("x".join(map(str, shape)) for shape in (foreign.image_shape, image_shape))
        raise InputError(
            f"sampler.classifier is for images of {size} (--image_size in {SETTINGS}), but the run's are {own}"
        )
    return Classifier(foreign, sha256, time_scale)


@functools.lru_cache(maxsize=1)
def _read(path: Path, settings: str, version: tuple[int, int]) -> tuple[ForeignClassifier, str]:
    del version  # A file that has changed is read anew.
    return read_classifier(path, settings, SETTINGS), checksum(path)

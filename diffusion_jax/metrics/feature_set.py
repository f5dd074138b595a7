"""Features of sets of images: computed in batches over the mesh, kept on disk, and read back some at a time."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from diffusion_jax.data.split import Split, from_arrays
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.features import Extractor
from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.metrics.moments import Statistics, statistics_of
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
from diffusion_jax.parallel.map_batches import map_batches, padded_size
from diffusion_jax.parallel.resumable import Arrays, Batches, Compute, explained, rows_of
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import open_regular, read_regular

FILE, SEAL = "features.f32", "features.json"  # Numbers alone; shape and checksum.


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a set of images, or only their mean and covariance.

    Attributes:
      name: What they are of, for messages.
      features: One row per image; perhaps on disk (`np.memmap`). None: only the statistics are known.
      known_statistics: Mean and covariance, if they are known.
      logits: Features -> logits of the extractor's classes; None if it has none.
      read: Indices -> images, uint8; None: they are not at hand.
    """

    name: str
    features: Float32[np.ndarray, "n d"] | None = None
    known_statistics: Statistics | None = None
    logits: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]] | None = None
    read: Callable[[Int64[np.ndarray, " b"]], UInt8[np.ndarray, "b h w c"]] | None = None

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance, float64."""
        if self.known_statistics is not None:
            return self.known_statistics
        return statistics_of(self.rows("fd"))

    def rows(self, metric: str) -> Float32[np.ndarray, "n d"]:
        """Returns the features.

        Args:
          metric: What needs them, for the message.

        Raises:
          InputError: Only the statistics are known.
        """
        if self.features is None:
            raise InputError(
                f"{metric} needs the features of each image, but {self.name} holds their mean and covariance only; "
                "name the images instead, or measure fd alone"
            )
        return self.features


def extract(
    extractor: Extractor,
    images: Split,
    mesh: jax.sharding.Mesh | None = None,
    *,
    batch_size: int = 64,
    folder: Path | None = None,
    done: Callable[[int], object] | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Returns the features of images in order; neither devices nor batches change them beyond float rounding.

    Args:
      extractor: The network.
      images: The images.
      mesh: Devices; None: all of them.
      batch_size: Images per batch, rounded up to a multiple of the number of devices.
      folder: Where finished batches are kept, so that a killed command goes on, and at the end all features, in a file
        that the array maps; other processes than the first get none, and measure nothing. None: memory.
      done: Called with the number of images of each batch.

    Raises:
      InputError: There are no images, or they have other than one or three channels.
      RunError: A file cannot be written.
      Stopped: A signal arrived.
    """
    check_channels(images)
    mesh = sharding.make_mesh(-1, 1) if mesh is None else mesh
    tell = done or (lambda count: None)
    none = np.zeros((0, extractor.num_features), np.float32)
    if folder is not None:
        kept = run_on_first(
            "kept features", lambda: read_features(folder, images.num_images, extractor)
        )
        if broadcast_from_first("whether features are kept", lambda: kept is not None):
            tell(images.num_images)
            return none if kept is None else kept
    size = padded_size(min(batch_size, images.num_images), mesh)
    of_batch = _network(extractor, mesh, size).features(images)
    sound = rows_of(features=(np.float32, (extractor.num_features,)))
    batches = Batches(None if folder is None else folder / "parts", images.num_images, sound)
    if folder is None:
        read = batches.complete(of_batch, size, done)
        return np.concatenate([batch["features"] for batch in read])
    finished = batches.finished()
    tell(len(finished))
    for batch in batches.compute(of_batch, size, finished):
        tell(len(batch["indices"]))
    written = run_on_first("write features", lambda: _write(batches, folder, extractor))
    return none if written is None else written


class _Network:
    """The compiled network of an extractor, which many sets of images are measured with."""

    def __init__(self, extractor: Extractor, mesh: jax.sharding.Mesh, size: int) -> None:
        apply = extractor.apply  # No reference to the extractor, which then would live on.
        self._images: Split | None = None

        def features_of(params: Any, pixels: Any) -> tuple:
            return (apply(params, pixels),)

        self._mapped = map_batches(features_of, mesh, size, load=self._load)
        self._params = sharding.put(sharding.replicated(mesh), extractor.params)

    def _load(self, indices: Int64[np.ndarray, " b"]) -> tuple[UInt8[np.ndarray, "b h w c"]]:
        """Reads the images whose features this process computes."""
        assert self._images is not None
        return (self._images.read(indices)["image"],)

    def features(self, images: Split) -> Compute:
        """Returns indices -> features of these images."""

        def of_batch(indices: Int64[np.ndarray, " b"]) -> Arrays:
            self._images = images
            rows = self._mapped((self._params,), (indices,))[0]
            return {"features": np.asarray(rows, np.float32)}

        return of_batch


_networks: weakref.WeakKeyDictionary[Extractor, dict[Any, _Network]] = weakref.WeakKeyDictionary()


def _network(extractor: Extractor, mesh: jax.sharding.Mesh, size: int) -> _Network:
    """Returns the compiled network, made at the first call for these devices and this batch."""
    made = _networks.setdefault(extractor, {})
    if (mesh, size) not in made:
        made[mesh, size] = _Network(extractor, mesh, size)
    return made[mesh, size]


def check_channels(images: Split) -> None:
    """Raises an InputError unless there are images, gray or RGB."""
    if images.num_images == 0:
        raise InputError("there are no images to measure")
    if images.image_shape[2] not in (1, 3):
        raise InputError(
            f"the images have {images.image_shape[2]} channels; features are those of gray or RGB images"
        )


def _write(batches: Batches, folder: Path, extractor: Extractor) -> Float32[np.ndarray, "n d"]:
    """Writes the features of all batches to one file, with its seal; removes the batches, and returns the features."""
    total, digest = 0, hashlib.sha256()
    path = folder / FILE
    with explained(path), owned_write(path) as unfinished, unfinished.open("wb") as file:
        for batch in batches.read_all():
            total += len(batch["indices"])
            block = batch["features"].tobytes()
            digest.update(block)
            file.write(block)
    seal = _seal(total, digest.hexdigest(), extractor)
    with explained(folder / SEAL), owned_write(folder / SEAL) as unfinished:
        unfinished.write_text(json.dumps(seal, indent=2) + "\n")
    batches.remove()
    kept = read_features(folder, total, extractor)
    if kept is None:
        raise RunError(f"the features in {folder} are damaged; run the same command again")
    return kept


def _seal(num_images: int, sha256: str, extractor: Extractor) -> dict[str, Any]:
    return {
        "shape": [num_images, extractor.num_features],
        "sha256": sha256,
        "features": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
    }


def read_features(
    folder: Path, num_images: int, extractor: Extractor
) -> Float32[np.ndarray, "n d"] | None:
    """Returns the features that `extract` has kept in a folder, if they are whole and of this extractor; else None."""
    try:
        seal = json_text.parse_object(read_regular(folder / SEAL))
        with open_regular(folder / FILE) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    if seal != _seal(num_images, found, extractor):
        return None
    shape = num_images, extractor.num_features
    return np.memmap(folder / FILE, np.float32, "r", shape=shape)


def to_statistics(images: Any, extractor: Extractor | None = None) -> Statistics:
    """Returns the statistics of images, or of their features, or those that are given."""
    if isinstance(images, Statistics):
        return images
    return statistics_of(to_features(images, extractor))


def to_features(images: Any, extractor: Extractor | None = None) -> Float[np.ndarray, "n d"]:
    """Returns the features of images, or those that are given.

    Args:
      images: uint8 images, n × h × w × c; features, n × d, floats.
      extractor: What makes features of images.

    Raises:
      InputError: The array is neither, or there is no extractor for images.
    """
    array = np.asarray(images)
    if array.ndim == 2 and np.issubdtype(array.dtype, np.floating):
        return array
    if array.ndim != 4:
        raise InputError(
            f"an array of shape {array.shape} and dtype {array.dtype} is given; it must be n × d features or "
            "n × h × w × c images of uint8"
        )
    if extractor is None:
        raise InputError("images are given without an extractor of features")
    return extract(extractor, from_arrays(array))

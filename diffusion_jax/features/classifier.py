"""Features of a small classifier that is trained on the data's own labels: they need no download."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax.data.locked import locked
from diffusion_jax.data.split import Split, content_digest
from diffusion_jax.errors import RunError, reason
from diffusion_jax.features.classifier_training import (
    Recipe,
    Trained,
    check_labels,
    native_shape,
    prepare,
    train,
)
from diffusion_jax.features.extractor import Extractor
from diffusion_jax.parallel.distributed import arrays_of_first
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.writing.atomic import atomic_write


def classifier(split: Callable[[], Split], cache_dir: Path) -> Extractor:
    """Trains a classifier on labeled images, or reads the one trained on them before.

    Training takes seconds to minutes. If several commands call this, one trains and the others wait; of the processes
    of a command, the first one trains or reads, and all get its weights.

    Args:
      split: Opens the labeled training images.
      cache_dir: Folder whose folder `features` keeps the trained weights.

    Raises:
      InputError: The images have no labels, or are all of one class.
      RunError: The weights cannot be kept.
      Stopped: A signal arrived during the training.
    """
    return trained_on(split(), cache_dir, Recipe())


def trained_on(split: Split, cache_dir: Path, recipe: Recipe) -> Extractor:
    """Returns the classifier of a recipe; see `classifier`."""
    from diffusion_jax.features.networks.classifier import Classifier  # Slow to import.

    check_labels(split)
    network = Classifier(split.num_classes)
    shape = native_shape(split.image_shape, recipe)
    identity = repr((content_digest(split), recipe, network.num_features, network.channels))
    name = f"classifier-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    expected = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    )
    path = cache_dir / "features" / f"{name}.npz"
    params = arrays_of_first(  # Hosts that train for themselves may round differently.
        "weights of the classifier",
        lambda: _cached(path, expected, lambda: train(split, network, recipe)),
        expected,
    )

    def apply(params: Any, images: UInt8[Array, "b h w c"]) -> Float[Array, "b d"]:
        # GPUs and TPUs would round what they multiply to 11 or 8 bits.
        with jax.default_matmul_precision("highest"):
            return network.apply({"params": params}, prepare(images, shape))[0]  # pyright: ignore[reportIndexIssue]

    def logits(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return features @ params["logits"]["kernel"] + params["logits"]["bias"]

    height, width, channels = shape
    size = f"{height}x{width} {'RGB' if channels == 3 else 'gray'}"
    return Extractor(
        name="classifier",
        params=params,
        apply=apply,
        num_features=network.num_features,
        preprocessing=f"bilinear antialiased to {size}, native to the data",
        weights_sha256=_sha256(params),
        logits=logits,
    )


def _cached(path: Path, expected: Any, make: Callable[[], Trained]) -> Any:
    """Returns the weights in a file, which is made first if it is missing or damaged.

    Args:
      path: The file.
      expected: Tree of the weights' shapes.
      make: Trains them.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            found = _read(path, expected)
            return _made(path, make) if found is None else found
    except OSError as error:
        raise RunError(
            f"cannot keep the trained classifier in {str(path.parent)!r} ({reason(error)}); set cache_dir or "
            "DIFFUSION_JAX_CACHE to a folder that can be written"
        ) from error


def _read(path: Path, expected: Any) -> Any | None:
    try:
        arrays = read_npz(path)
        wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in _flat(expected).items()}
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
            raise ValueError("it holds other arrays")
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"note: {path} is made again: {error}", file=sys.stderr)
        return None
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[n] for n in _flat(expected)])


def _made(path: Path, make: Callable[[], Trained]) -> Any:
    started = time.monotonic()
    trained = make()
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **_flat(trained.params))  # pyright: ignore[reportArgumentType]
    print(
        f"features classifier: trained on {trained.num_images} images in {time.monotonic() - started:.0f} s, accuracy "
        f"{trained.accuracy:.1%}, held out {trained.held_out_accuracy:.1%}; kept in {path}",
        file=sys.stderr,
    )
    return trained.params


def _flat(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _sha256(params: Any) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(_flat(params).items()):
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""Training of the small classifier, from a fixed seed: the same data give the same features on one machine."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64, UInt8
from tqdm import tqdm

from diffusion_jax.data.pipeline import batches, epoch_order
from diffusion_jax.data.split import Split
from diffusion_jax.errors import InputError
from diffusion_jax.features.resize import resize
from diffusion_jax.keys import stream
from diffusion_jax.lifecycle import stopping


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the classifier is trained; a change makes other features.

    Attributes:
      steps: Most optimizer steps (AdamW; the learning rate rises, and falls to zero as a cosine).
      epochs: Most passes over the images.
      batch_size: Images in a step.
      learning_rate: Highest learning rate.
      weight_decay: Decay of the weights, as in `optax.adamw`.
      held_out: Share of the images that are left out of training, to measure the accuracy.
      most_held_out: Largest number of these; as many training images are measured.
      largest_side: Longer sides of images are resized to this first.
      seed: Seed of the first weights, the images' order and those held out.
    """

    steps: int = 1500
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    held_out: float = 0.1
    most_held_out: int = 5000
    largest_side: int = 32
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
      params: Its weights, on the host.
      num_images: Number of images that it was trained on.
      accuracy: Share of training images whose class it finds.
      held_out_accuracy: The same of images that it was not trained on.
    """

    params: Any
    num_images: int
    accuracy: float
    held_out_accuracy: float


def native_shape(image_shape: tuple[int, int, int], recipe: Recipe) -> tuple[int, int, int]:
    """Returns the (H, W, C) that the classifier sees."""
    height, width, channels = image_shape
    return min(height, recipe.largest_side), min(width, recipe.largest_side), channels


def prepare(
    images: UInt8[Array | np.ndarray, "b h w c"], shape: tuple[int, int, int]
) -> Float[Array, "b h2 w2 c2"]:
    """Returns images of any size as the classifier's inputs, in [-1, 1].

    Args:
      images: Gray or RGB images.
      shape: (H, W, C) of the result; gray images get three equal channels, colors are averaged to gray.
    """
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    if x.shape[3] > shape[2]:
        x = x.mean(axis=3, keepdims=True)
    if x.shape[1:3] != shape[:2]:
        x = resize(x, shape[:2], "bilinear_antialias")
    return jnp.broadcast_to(x, (*x.shape[:3], shape[2]))


def check_labels(split: Split) -> None:
    """Raises an InputError if the images do not have labels of two classes or more."""
    counts = split.class_counts
    num_classes = split.num_classes if counts is None else sum(count > 0 for count in counts)
    if num_classes < 2:
        has = "one class" if num_classes else "no labels"
        raise InputError(
            f"features classifier is trained on labels of at least two classes, and the data has {has}; use lite0, or "
            "inception or dinov2 with their weight files, which need no labels"
        )


def train(split: Split, network: Any, recipe: Recipe) -> Trained:
    """Trains a classifier.

    Args:
      split: Labeled images; see `check_labels`.
      network: Linen module with a `Classifier`'s call.
      recipe: How to train it.

    Raises:
      Stopped: A signal arrived; nothing is kept of the training.
    """
    order = epoch_order(recipe.seed, 0, split.num_images)
    num_held_out = min(recipe.most_held_out, max(1, int(recipe.held_out * split.num_images)))
    held_out, seen = order[:num_held_out], order[num_held_out:]
    shape = native_shape(split.image_shape, recipe)
    steps = min(recipe.steps, -(-recipe.epochs * len(seen) // recipe.batch_size))
    init, step = _steps(network, shape, recipe, steps)
    state = init(stream(recipe.seed, "classifier"))
    drawn = batches(
        _subset(split, seen), seed=recipe.seed, batch_size=recipe.batch_size, stop=steps
    )
    bar = tqdm(drawn, "classifier", steps, leave=False, disable=not sys.stderr.isatty())
    for batch in bar:
        stopping.check()
        state = step(*state, batch["image"], batch["label"])
    params = jax.device_get(state[0])
    accuracies = [
        _accuracy(split, rows[:num_held_out], network, params, shape, recipe.batch_size)
        for rows in (seen, held_out)
    ]
    return Trained(params, len(seen), *accuracies)


def _subset(split: Split, rows: Int64[np.ndarray, " n"]) -> Split:
    return Split(
        len(rows), split.image_shape, split.class_names, lambda indices: split.read(rows[indices])
    )


def _steps(
    network: Any, shape: tuple[int, int, int], recipe: Recipe, steps: int
) -> tuple[Any, Any]:
    """Returns functions that make the first state, of parameters and optimizer, and the next one."""
    import optax  # Slow to import.

    warmup = min(100, steps // 4)
    rate = optax.warmup_cosine_decay_schedule(0, recipe.learning_rate, warmup, steps)
    optimizer = optax.adamw(rate, weight_decay=recipe.weight_decay)

    def init(key: Array) -> tuple[Any, Any]:
        params = network.init(key, jnp.zeros((1, *shape)))["params"]
        return params, optimizer.init(params)

    def loss(params: Any, images: Array, labels: Int[Array, " b"]) -> Array:
        _, logits = network.apply({"params": params}, prepare(images, shape))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, moments: Any, images: Array, labels: Array) -> tuple[Any, Any]:
        updates, moments = optimizer.update(jax.grad(loss)(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    return jax.jit(init), jax.jit(step, donate_argnums=(0, 1))


def _accuracy(
    split: Split,
    rows: Int64[np.ndarray, " n"],
    network: Any,
    params: Any,
    shape: tuple[int, int, int],
    batch_size: int,
) -> float:
    @jax.jit
    def classes(params: Any, images: Array) -> Array:
        return network.apply({"params": params}, prepare(images, shape))[1].argmax(axis=1)

    correct = 0
    for start in range(0, len(rows), batch_size):
        stopping.check()
        part = rows[start : start + batch_size]
        batch = split.read(np.resize(part, batch_size))  # One compiled shape.
        right = np.asarray(classes(params, batch["image"])) == batch["label"]
        correct += int(right[: len(part)].sum())
    return correct / len(rows)

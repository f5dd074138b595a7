"""What scripts that time train steps share: a batch of random images, and the seconds of a step."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import report


def random_batch(template: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns random images, all of class 0, of a batch's shapes and where its shardings say."""
    images = template["image"]
    values = {
        "image": np.random.default_rng(0).integers(0, 256, images.shape, np.uint8),
        "label": np.zeros(images.shape[0], np.int32),
    }
    return {name: jax.device_put(value, template[name].sharding) for name, value in values.items()}


def step_seconds(step: Any, state: Any, batch: Any, passes: int, repeats: int) -> float:
    """Returns the seconds of a step: the median of `repeats` series of `passes`, after one step that warms up."""
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(passes):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append((time.perf_counter() - started) / passes)
    return report.median(seconds)

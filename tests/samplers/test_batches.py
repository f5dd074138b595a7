"""Batches of images over the mesh: one compiled program for all that a run draws."""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.parallel.sharding import make_mesh
from diffusion_jax.samplers import SampleResult
from diffusion_jax.samplers.batches import make_batch_sampler
from diffusion_jax.samplers.loop import equal_stats


def draw(params: Any, settings: Any, indices: Any, labels: Any) -> SampleResult:
    """Images that say what they were drawn from."""
    parts = [jnp.full(len(indices), x, jnp.uint8) for x in (params["w"], settings)]
    images = jnp.stack([*parts, indices.astype(jnp.uint8), labels.astype(jnp.uint8)], axis=1)
    x = images[:, None, None, :]
    return SampleResult(x, None, None, equal_stats(x.astype(jnp.float32), 1, 0.0))


@pytest.mark.parametrize("devices", [1, 8])
def test_one_program_draws_any_images_of_any_settings_labels_and_parameters(devices: int) -> None:
    chex.clear_trace_counter()
    counted: Any = chex.assert_max_traces(draw, n=1)
    sampler = make_batch_sampler(counted, make_mesh(devices), 5, num_classes=4)
    for w, settings, indices, labels, classes in (
        (1, 0, [0, 1, 2, 3, 4], None, [0, 1, 2, 3, 0]),
        (1, 7, [9, 2], None, [1, 2]),
        (2, 200, [6], (3,), [3]),
        (2, 1, [8, 3, 0], (3, 0), [3, 0, 3]),
    ):
        params = {"w": jnp.asarray(w, jnp.int32)}
        images = sampler(params, np.uint32(settings), np.array(indices), labels).images
        expected = [[w, settings, i, label] for i, label in zip(indices, classes, strict=True)]
        np.testing.assert_array_equal(images[:, 0, 0, :], expected)

"""Batches of images over the mesh: one compiled program for all that a run draws."""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import to_uint8
from diffusion_jax.lifecycle import stopping
from diffusion_jax.models import Prediction, complete
from diffusion_jax.parallel.sharding import make_mesh
from diffusion_jax.processes import VP, eps_from_x0, make_grid
from diffusion_jax.samplers import (
    SampleResult,
    ancestral,
    batches,
    first_noise,
    image_keys,
    sample_loop,
)
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


def draw_part(
    params: Any, seed: Any, start: Any, stop: Any, indices: Any, labels: Any, x: Any
) -> tuple[Any, ...]:
    """Ancestral steps of a made-up network, from x_T or from x."""
    keys, sampler = image_keys(seed, indices), ancestral(make_grid(VP(), 12))
    x = jnp.where(start == 0, first_noise(keys, (2, 2, 1)), x)
    result = sample_loop(
        denoise(params), sampler, keys, (2, 2, 1), x_init=x, start=start, stop=stop
    )
    return result.images, to_uint8(result.images), result.stats, jnp.isfinite(x).all((1, 2, 3))


def denoise(scale: Any) -> Any:
    def predict(x: Any, point: Any) -> Prediction:
        x0 = jnp.tanh(scale * x)
        return complete(point, x0, eps_from_x0(point, x, x0))

    return predict


@pytest.mark.parametrize("devices", [1, 8])
def test_parts_of_a_batch_draw_what_one_run_draws_to_the_bit(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, told = [], []
    for parts, shortest in ((1, 0.0), (12, 0.0), (12, 1e9)):
        monkeypatch.setattr(batches, "PARTS", parts)
        monkeypatch.setattr(batches, "SHORTEST", shortest)
        done: list[int] = []
        size = make_mesh(devices), 8, (2, 2, 1), 12
        sampler = batches.make_sampler_in_parts(draw_part, *size, done.append)
        drawn.append(sampler(jnp.float32(0.7), np.uint32(3), np.arange(6)))
        told.append(done)
    assert told == [[12], list(range(1, 13)), [1, 3, 7, 12]]
    for samples in drawn:
        np.testing.assert_array_equal(samples.images, drawn[0].images)
        assert samples.stats.evaluations.tolist() == [12] * 6 and samples.finite.all()
    whole = sample_loop(
        denoise(0.7), ancestral(make_grid(VP(), 12)), image_keys(3, np.arange(6)), (2, 2, 1)
    )
    np.testing.assert_allclose(drawn[0].images.astype(int), to_uint8(whole.images), atol=1)


def test_a_signal_stops_a_batch_between_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def advance(steps: int) -> None:
        done.append(steps)
        if steps == 3:
            stopping.request("SIGTERM")

    monkeypatch.setattr(batches, "SHORTEST", 0.0)
    sampler = batches.make_sampler_in_parts(draw_part, make_mesh(1), 8, (2, 2, 1), 12, advance)
    try:
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            sampler(jnp.float32(0.7), np.uint32(3), np.arange(6))
    finally:
        stopping.forget()
    assert done == [1, 2, 3]

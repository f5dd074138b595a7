"""A metric of one's own that is a mean over images."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import from_arrays
from diffusion_jax.metrics import MeanMetric, make_measure
from diffusion_jax.parallel.sharding import make_mesh

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Brightness(MeanMetric):
    exponent: int = 1

    def value(self, params: Any, x0: Any, labels: Any, indices: Any) -> Any:
        return params * x0.mean((1, 2, 3)) ** self.exponent


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_the_mean_is_that_of_all_images_whatever_the_batch(batch_size, tmp_path):
    metric = Brightness(exponent=2)
    measure = make_measure(
        *(metric, from_arrays(PIXELS), make_mesh(4)),
        conditional=False,
        num_images=10,
        batch_size=batch_size,
    )
    values = 3 * np.square((PIXELS[:10] / 127.5 - 1).mean((1, 2, 3)))
    result = measure(jnp.float32(3), tmp_path / "parts")
    np.testing.assert_allclose(result.total.value, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.total.stderr, values.std(ddof=1) / np.sqrt(10), rtol=1e-5)
    record = {**metric.record(result), "split": "test", "step": 7}
    assert record["num_images"] == 10 and metric.problem(result) is None
    assert metric.summarize(record).endswith("of 10 test images, checkpoint 7")
    kept = measure(jnp.float32(0), tmp_path / "parts")  # All that was measured is read again.
    assert kept.total == result.total


def test_a_mean_that_is_not_finite_is_null_and_a_problem():
    metric = Brightness()
    measure = make_measure(
        *(metric, from_arrays(PIXELS), make_mesh(1)),
        conditional=False,
        num_images=10,
        batch_size=10,
    )
    result = measure(jnp.float32(np.nan))
    assert metric.record(result) == {"value": None, "stderr": None, "num_images": 10}
    assert "Brightness of some images is not finite" in (metric.problem(result) or "")
    assert "nan" in metric.summarize({**metric.record(result), "split": "test", "step": 7})

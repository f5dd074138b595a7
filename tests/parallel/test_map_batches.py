"""Rows computed batch by batch over the mesh: any number of them, by one program."""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.parallel.map_batches import map_batches
from diffusion_jax.parallel.sharding import make_mesh

IMAGES = np.arange(40.0, dtype=np.float32).reshape(20, 2)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 20])
def test_outputs_have_the_rows_that_were_given_whatever_the_batches(devices: int, count: int):
    def function(offset: Any, x: Any, labels: Any) -> tuple:
        assert labels is None
        return x + offset, None, {"along 1": jnp.stack([x.sum(1), x.prod(1)])}

    chex.clear_trace_counter()
    counted: Any = chex.assert_max_traces(function, n=1)
    mapped = map_batches(counted, make_mesh(devices), 5, out_axes=(0, None, 1))
    x = IMAGES[:count]
    for offset in (0.5, 2.0):
        added, none, by_name = mapped((np.float32(offset),), (x, None))
        np.testing.assert_array_equal(added, x + np.float32(offset))
        np.testing.assert_array_equal(by_name["along 1"], [x.sum(1), x.prod(1)])
        assert none is None


@pytest.mark.parametrize("devices", [1, 8])
def test_what_rows_stand_for_is_loaded_a_padded_batch_at_a_time(devices: int):
    loaded = []

    def load(indices: np.ndarray) -> tuple:
        loaded.append(indices.tolist())
        return IMAGES[indices], indices.astype(np.int32)

    mapped = map_batches(lambda x, i: (x[:, 0] - i,), make_mesh(devices), 7, load=load)
    (found,) = mapped((), (np.array([3, 19, 4, 0, 1, 2, 5, 6, 7]),))
    np.testing.assert_array_equal(found, [3, 19, 4, 0, 1, 2, 5, 6, 7])  # IMAGES[i, 0] is 2 i.
    size = 7 if devices == 1 else 8
    first, rest = [3, 19, 4, 0, 1, 2, 5, 6, 7][:size], [3, 19, 4, 0, 1, 2, 5, 6, 7][size:]
    assert loaded == [first, np.resize(rest, size).tolist()]


def test_rows_may_be_a_tree_of_arrays():
    mapped = map_batches(lambda tree: (tree["a"] + tree["b"],), make_mesh(1), 3)
    (sums,) = mapped((), ({"a": np.arange(8.0), "b": np.ones(8)},))
    np.testing.assert_array_equal(sums, np.arange(8.0) + 1)

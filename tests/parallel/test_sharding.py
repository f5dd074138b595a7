"""Meshes and where arrays lie on them, on eight simulated devices."""

import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.errors import InputError
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import (
    batch_sharding,
    fetch,
    fsdp_shardings,
    local_rows,
    make_mesh,
    over_batch,
    put,
    replicated,
)


@pytest.mark.parametrize(("data", "size"), [(-1, 8), (1, 1), (4, 4), (8, 8)])
def test_a_mesh_has_the_devices_asked_for(data, size):
    assert make_mesh(data).shape == {"data": size, "fsdp": 1}


@pytest.mark.parametrize(
    ("data", "fsdp", "problem"),
    [
        (0, 1, r"mesh.data is 0; it must be -1 \(all remaining devices\) or at least 1"),
        (-2, 1, "mesh.data is -2; it must be -1"),
        (9, 1, "mesh.data is 9 and mesh.fsdp 1: 9 device.s.; there are 8"),
        (3, 4, "mesh.data is 3 and mesh.fsdp 4: 12 device.s.; there are 8"),
        (-1, 3, "mesh.fsdp is 3; it must divide the number of devices, 8"),
        (-1, 16, "mesh.fsdp is 16; it must divide the number of devices, 8"),
    ],
)
def test_a_mesh_of_devices_that_are_not_there_says_how_many_there_are(data, fsdp, problem):
    with pytest.raises(InputError, match=problem):
        make_mesh(data, fsdp)


@pytest.mark.parametrize(("data", "fsdp", "size"), [(-1, 4, 2), (2, 2, 2), (1, 8, 1), (-1, 8, 1)])
def test_fsdp_takes_its_devices_first_and_neighbors_share_an_array(data, fsdp, size):
    mesh = make_mesh(data, fsdp)
    assert mesh.shape == {"data": size, "fsdp": fsdp}
    assert [d.id for d in mesh.devices[0]] == list(range(fsdp))


def test_all_devices_are_needed_where_there_are_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="4 device.s.; several processes need all 8"):
        make_mesh(4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_batch_is_split_along_its_axis_and_comes_back_whole(axis):
    values = np.arange(3 * 16).reshape((16, 3) if axis == 0 else (3, 16))
    array = put(batch_sharding(make_mesh(), axis), values)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start)
    for i, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.data, values.take([2 * i, 2 * i + 1], axis))
    np.testing.assert_array_equal(fetch(array), values)


def test_a_replicated_array_is_whole_on_every_device():
    array = jax.device_put(np.arange(3), replicated(make_mesh()))
    assert [shard.data.shape for shard in array.addressable_shards] == [(3,)] * 8


def test_put_and_fetch_take_trees_and_keep_types():
    batch = {"image": np.zeros((8, 2), np.uint8), "label": np.arange(8, dtype=np.int32)}
    back = fetch(put(batch_sharding(make_mesh()), batch))
    assert back.keys() == batch.keys()
    assert back["image"].dtype == np.uint8 and back["label"].dtype == np.int32
    np.testing.assert_array_equal(back["label"], batch["label"])


class SeenFromProcess(NamedSharding):
    """A sharding as one of four processes sees it: two of the eight devices are its own."""

    process = 0

    def addressable_devices_indices_map(self, global_shape):
        indices = self.devices_indices_map(global_shape)
        return {d: index for d, index in indices.items() if d.id // 2 == self.process}


ORDERS = {
    "by process": ((0, 1, 2, 3, 4, 5, 6, 7), [range(6 * p, 6 * p + 6) for p in range(4)]),
    # Three rows a device: process 0 has the places of devices 0 and 1, first and fifth, and so on.
    "in turn": (
        (0, 2, 4, 6, 1, 3, 5, 7),
        [[*range(3 * p, 3 * p + 3), *range(3 * p + 12, 3 * p + 15)] for p in range(4)],
    ),
    "backwards": ((7, 6, 5, 4, 3, 2, 1, 0), [range(18 - 6 * p, 24 - 6 * p) for p in range(4)]),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_process_has_the_rows_of_its_devices_whatever_their_order(order):
    places, expected = ORDERS[order]
    mesh = make_mesh(devices=[jax.devices()[place] for place in places])
    sharding = SeenFromProcess(mesh, batch_sharding(mesh).spec)
    for process, rows in enumerate(expected):
        sharding.process = process
        assert local_rows(sharding, 24).tolist() == list(rows)


def test_rows_that_several_devices_hold_count_once():
    assert local_rows(replicated(make_mesh()), 5).tolist() == list(range(5))


@pytest.mark.parametrize(
    ("data", "batch_size", "size"),
    [
        *[(-1, 512, 8), (-1, 256, 8), (-1, 254, 2), (-1, 224, 7), (-1, 222, 6), (-1, 192, 6)],
        *[(-1, 64, 2), (-1, 63, 1), (-1, 8, 1), (-1, 1, 1), (-1, None, 8), (3, 16, 3)],
    ],
)
def test_on_the_cpu_as_many_devices_as_divide_the_batch_into_32_or_more(data, batch_size, size):
    assert make_mesh(data, batch_size=batch_size).size == size


def test_accelerators_and_several_processes_are_all_taken(monkeypatch):
    gpus = [types.SimpleNamespace(platform="gpu", id=i) for i in range(8)]
    placed = sharding._placed
    with monkeypatch.context() as patch:  # A mesh itself takes only real devices.
        patch.setattr(sharding, "_placed", lambda _, *shape: placed(jax.devices(), *shape))
        assert make_mesh(batch_size=12, devices=gpus).size == 8
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert make_mesh(batch_size=12).size == 8


@pytest.mark.parametrize(
    ("shape", "devices", "spec"),
    [
        ((512, 512), 4, ("fsdp",)),
        ((3, 3, 128, 256), 8, (None, None, None, "fsdp")),
        ((512, 1001), 2, ("fsdp",)),  # The larger axis has no two equal parts.
        ((512, 1002), 2, (None, "fsdp")),
        ((363, 363), 2, ()),
        ((2**14,), 8, ("fsdp",)),
        ((2**14 - 8,), 8, ()),  # Small.
        ((), 8, ()),
        ((512, 512), 1, ()),
    ],
)
def test_large_arrays_are_divided_along_the_largest_axis_that_fsdp_divides(shape, devices, spec):
    mesh = make_mesh(1, devices)
    shardings = fsdp_shardings({"a": jax.ShapeDtypeStruct(shape, np.float32)}, mesh)
    assert shardings == {"a": NamedSharding(mesh, PartitionSpec(*spec))}


ROWS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)


def losses_and_gradient(w: Any, rows: Any) -> tuple[Any, Any]:
    """Returns the loss of each row, and the gradient of their mean; w is used twice a chunk of two rows."""

    def loss(w: Any) -> tuple[Any, Any]:
        def chunk(_: None, rows: Any) -> tuple[None, Any]:
            return None, jnp.square(jnp.tanh(rows @ w) @ w).sum(1)

        losses = jax.lax.scan(chunk, None, rows.reshape(-1, 2, 6))[1].reshape(-1)
        return losses.mean(), losses

    gradient, losses = jax.grad(loss, has_aux=True)(w)
    return losses, gradient


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_each_device_computes_its_rows_and_the_mean_over_devices_is_taken_once(devices):
    seen, mesh = [], make_mesh(devices)

    def spied(w: Any, rows: Any) -> tuple[Any, Any]:
        seen.append(len(rows))
        return losses_and_gradient(w, rows)

    divided = jax.jit(over_batch(spied, mesh, out_axes=(0, None)))
    rows, w = put(batch_sharding(mesh), ROWS), jax.device_put(WEIGHTS, replicated(mesh))
    program = divided.lower(w, rows).compile()
    assert set(seen) == {16 // devices}
    collectives = re.findall(r" (all-\w+|reduce-scatter|collective-\w+)\(", str(program.as_text()))
    assert collectives == ([] if devices == 1 else ["all-reduce"])
    losses, gradient = program(w, rows)
    assert losses.sharding.is_equivalent_to(batch_sharding(mesh), 1)
    assert gradient.sharding.is_fully_replicated
    expected = losses_and_gradient(WEIGHTS, ROWS)
    # Sums of 16 float32 rows in another order.
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-5)


def test_outputs_have_their_rows_along_the_axis_that_was_said():
    mesh = make_mesh(4)

    def function(whole: Any, rows: Any, none: None) -> Any:
        return {"second": rows["x"].T + whole, "absent": none, "pair": (rows["x"], 2 * rows["x"])}

    divided = over_batch(function, mesh, out_axes={"second": 1, "absent": 0, "pair": 0})
    output = jax.jit(divided)(jnp.float32(3), {"x": put(batch_sharding(mesh), ROWS)}, None)
    np.testing.assert_array_equal(output["second"], ROWS.T + 3)
    assert output["second"].sharding.is_equivalent_to(batch_sharding(mesh, axis=1), 2)
    assert output["absent"] is None
    np.testing.assert_array_equal(output["pair"], (ROWS, 2 * ROWS))


def test_one_device_runs_the_function_itself():
    for mesh in (None, make_mesh(1)):
        assert over_batch(losses_and_gradient, mesh) is losses_and_gradient

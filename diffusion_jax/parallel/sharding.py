"""The device mesh and how arrays lie on it: batches split along `data`, everything else on each device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from diffusion_jax.errors import InputError

BATCH_AXIS = "data"
# A CPU device with fewer images spends its time on starting operations and on the sums over devices: on two cores a
# step on two devices took 1.1 times as long as on one with 4 images of CIFAR-10 each, 1.3 times with 16 digits, and
# 0.77 times with 32 images of 28x28.
WORTH_A_DEVICE = 32
# Arrays of fewer numbers stay whole. Divided from 2^14 on, those of a U-Net of 0.7 M parameters took two busy cores
# 0.06 s a step in place of 0.04: each array is gathered by itself.
WORTH_DIVIDING = 2**17


def make_mesh(data: int = -1, batch_size: int | None = None) -> Mesh:
    """Returns a mesh of devices along the batch.

    Args:
      data: Number of devices. -1: all; of one process's CPU devices, the most that divide `batch_size` and get
        `WORTH_A_DEVICE` rows each.
      batch_size: Size of the batches that will be divided; None: any.

    Raises:
      InputError: More devices than there are, or, with several processes, not all of them.
    """
    devices = jax.devices()
    if data == -1:
        data = len(devices)
        if batch_size and jax.default_backend() == "cpu" and jax.process_count() == 1:
            most = min(data, max(1, batch_size // WORTH_A_DEVICE))
            data = next(n for n in range(most, 0, -1) if batch_size % n == 0)
    if not 1 <= data <= len(devices):
        raise InputError(
            f"mesh.data is {data}; it must be -1 or from 1 to {len(devices)} (devices)"
        )
    if data < len(devices) and jax.process_count() > 1:
        raise InputError(f"mesh.data is {data}; several processes need all {len(devices)} devices")
    return Mesh(np.array(devices[:data]), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The given axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def replicated_like(tree: Any, mesh: Mesh) -> Any:
    """Returns a sharding for each array: every device holds all of it."""
    return jax.tree.map(lambda _: replicated(mesh), tree)


def divided_like(tree: Any, mesh: Mesh) -> Any:
    """Returns a sharding for each array: its largest axis that the devices divide is split over them.

    Small arrays, and those without such an axis, are on each device.
    """

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if mesh.size == 1 or x.size < WORTH_DIVIDING or not axes:
            return replicated(mesh)
        return batch_sharding(mesh, max(axes, key=lambda axis: x.shape[axis]))

    return jax.tree.map(place, tree)


def over_batch(
    function: Callable[..., Any], mesh: Mesh | None, out_axes: Any = 0
) -> Callable[..., Any]:
    """Returns the function, of which each device computes its own rows of the batch (`jax.shard_map`).

    So a loop over chunks of the batch stays on the device: divided by XLA's propagation of shardings, all
    devices would do all of it.

    Args:
      function: (whole, *rows) -> outputs: every device gets all of `whole`, and its own part of `rows`, trees
        of arrays whose first axis is the batch.
      mesh: Devices, of which the batch is a multiple. One, or None: the function itself is returned.
      out_axes: Which axis of each output is the batch, a tree as in `jax.vmap`. None: it has none, and its
        mean over the devices is returned.
    """
    if mesh is None or mesh.size == 1:
        return function

    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, BATCH_AXIS)

    def finish(axis: int | None, output: Any) -> Any:
        return lax.pmean(output, BATCH_AXIS) if axis is None else output

    def local(whole: Any, *rows: Any) -> Any:
        # Else gradients of `whole` would be summed over the devices at its every use, not once at the end.
        whole = jax.tree.map(lambda x: lax.pcast(x, BATCH_AXIS, to="varying"), whole)
        return jax.tree.map(finish, out_axes, function(whole, *rows), is_leaf=_is_none)

    def by_rows(whole: Any, *rows: Any) -> Any:
        in_specs = PartitionSpec(), *[PartitionSpec(BATCH_AXIS)] * len(rows)
        out_specs = jax.tree.map(spec, out_axes, is_leaf=_is_none)
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(whole, *rows)

    return by_rows


def _is_none(leaf: Any) -> bool:
    return leaf is None


def local_rows(sharding: NamedSharding, batch_size: int) -> Int64[np.ndarray, " rows"]:
    """Returns the rows of a global batch that this process feeds to its devices, ascending.

    They need not lie together: a mesh may take the devices of several processes in turn.

    Args:
      sharding: That of an array whose first axis is the batch.
      batch_size: Size of the global batch, a multiple of the devices.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def put(sharding: NamedSharding, local: Any) -> Any:
    """Makes global arrays of every process's rows (its `local_rows`, in their order)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def fetch(tree: Any) -> Any:
    """Returns global arrays as NumPy arrays, whole and in the global order, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if x.is_fully_replicated
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )

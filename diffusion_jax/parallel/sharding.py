"""The device mesh and array shardings: batches over both of its axes, large arrays of the state over `fsdp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from diffusion_jax.errors import InputError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
# With fewer images per CPU device, overhead and sums over devices dominate: on two cores a step on two devices took 1.1
# times as long as on one with 4 images of CIFAR-10 each, 1.3 times with 16 digits, and 0.77 times with 32 images of
# 28x28.
WORTH_A_DEVICE = 32
# Smaller arrays are replicated: gathering one costs a message, however small. They are 0.6% of the parameters of the
# CIFAR-10 U-Net.
WORTH_DIVIDING = 2**14


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    *,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh of data x fsdp devices; neighbors along `fsdp` are physically close.

    Args:
      data: Devices along `data`. -1: all remaining ones; with the CPU devices of a single process, as many as divide
        `batch_size` and get at least `WORTH_A_DEVICE` rows each.
      fsdp: Devices along `fsdp`, over which parameters, optimizer state and averages are sharded too.
      batch_size: Size of the batches to be sharded; None: any.
      devices: Available devices; None: all devices of this run.

    Raises:
      InputError: The mesh does not match the devices: it needs more, `fsdp` does not divide their number, or it does
        not use all devices of several processes.
    """
    devices = jax.devices() if devices is None else devices
    data = _along_data(data, fsdp, len(devices), batch_size if _share_cores(devices) else None)
    size = data * fsdp
    if size < len(devices) and jax.process_count() > 1:
        raise InputError(
            f"mesh.data is {data} and mesh.fsdp {fsdp}: {size} device(s); several processes need all "
            f"{len(devices)}"
        )
    return Mesh(_placed(devices, data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def abstract_mesh(data: int, fsdp: int, num_devices: int) -> AbstractMesh:
    """Returns the mesh of devices that are not here, for the sizes of their parts alone.

    Args:
      data: Devices along `data`. -1: all remaining ones.
      fsdp: Devices along `fsdp`.
      num_devices: How many there are.

    Raises:
      InputError: The mesh does not match their number.
    """
    sizes = _along_data(data, fsdp, num_devices, None), fsdp
    return AbstractMesh(sizes, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def _along_data(data: int, fsdp: int, num_devices: int, sharing: int | None) -> int:
    """Returns the number of devices along `data`; `sharing`: the batch that CPU devices share, None on others."""
    if data == -1:
        data, rest = divmod(num_devices, fsdp)
        if rest:
            raise InputError(
                f"mesh.fsdp is {fsdp}; it must divide the number of devices, {num_devices}"
            )
        if sharing and fsdp == 1:
            most = min(data, max(1, sharing // WORTH_A_DEVICE))
            data = next(n for n in range(most, 0, -1) if sharing % n == 0)
    if data < 1:
        raise InputError(
            f"mesh.data is {data}; it must be -1 (all remaining devices) or at least 1"
        )
    if data * fsdp > num_devices:
        raise InputError(
            f"mesh.data is {data} and mesh.fsdp {fsdp}: {data * fsdp} device(s); there are {num_devices}"
        )
    return data


def _share_cores(devices: Sequence[Any]) -> bool:
    """Whether the devices are the CPU cores of one process, so that fewer may be faster."""
    return devices[0].platform == "cpu" and jax.process_count() == 1


def _placed(devices: Sequence[Any], data: int, fsdp: int) -> np.ndarray:
    """Arranges the devices; a full slice of TPUs according to its interconnect."""
    if devices[0].platform == "tpu" and data * fsdp == len(devices):
        if len({getattr(device, "slice_index", 0) for device in devices}) == 1:
            return mesh_utils.create_device_mesh((data, fsdp), devices)
    return np.array(devices[: data * fsdp]).reshape(data, fsdp)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits the given axis over all devices."""
    return NamedSharding(mesh, _rows(axis))


def _rows(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, BATCH_AXES)


def fsdp_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns a tree of shardings that split, over `fsdp`, the largest axis of each array that it divides.

    Small arrays, and those without such an axis, are replicated.
    """
    parts = mesh.shape[FSDP_AXIS]

    def sharding(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % parts == 0]
        if parts == 1 or x.size < WORTH_DIVIDING or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP_AXIS))

    return jax.tree.map(sharding, tree)


def _divided_axis(sharding: NamedSharding) -> int | None:
    """Returns the axis that is split over `fsdp`, or None."""
    return sharding.spec.index(FSDP_AXIS) if FSDP_AXIS in sharding.spec else None


def gather_parts(tree: Any, shardings: Any) -> Any:
    """Gathers whole arrays from the devices' parts, inside `over_batch`.

    Its derivative is a reduce-scatter: gradients are summed over `fsdp`, and each device gets those of its part.

    Args:
      tree: This device's parts.
      shardings: Tree of shardings, as from `fsdp_shardings`.
    """

    def gather(sharding: NamedSharding, x: Any) -> Any:
        axis = _divided_axis(sharding)
        return x if axis is None else lax.all_gather(x, FSDP_AXIS, axis=axis, tiled=True)

    return jax.tree.map(gather, shardings, tree)


def over_batch(
    function: Callable[..., Any], mesh: Mesh | None, out_axes: Any = 0, shardings: Any = None
) -> Callable[..., Any]:
    """Maps a function over the batch such that each device computes its own rows (`jax.shard_map`).

    A loop over chunks of the batch thus stays on its device; with XLA's sharding propagation, every
    device would run all of it.

    Args:
      function: (whole, *rows) -> outputs: every device gets all of `whole` and its own part of `rows`, pytrees
        of arrays with the batch as first axis.
      mesh: Devices; the batch must be a multiple of their number. One device, or None: the function is returned as is.
      out_axes: Batch axis of each output, a pytree as in `jax.vmap`. None: there is no batch axis, and the mean over
        the devices is returned. A string: the output is a pytree like that entry of `whole`, such as its gradients; the
        mean is returned, with each device's part on that device.
      shardings: Tree of shardings of `whole`, as from `fsdp_shardings`: the function gets this device's parts, and may
        combine them by `gather_parts`. None: it gets all of `whole`.
    """
    if mesh is None or mesh.size == 1:
        return function

    def by_rows(whole: Any, *rows: Any) -> Any:
        where = shardings or jax.tree.map(lambda _: replicated(mesh), whole)
        specs = jax.tree.map(lambda sharding: sharding.spec, where)

        def finish(axis: int | str | None, output: Any) -> Any:
            if isinstance(axis, str):
                return jax.tree.map(_mean, where[axis], output)
            return lax.pmean(output, BATCH_AXES) if axis is None else output

        def spec(axis: int | str | None) -> Any:
            if isinstance(axis, str):
                return specs[axis]
            return _rows(axis) if isinstance(axis, int) else PartitionSpec()

        def local(whole: Any, *rows: Any) -> Any:
            # Otherwise gradients of `whole` would be summed over the devices at every use, not once at the end.
            whole = jax.tree.map(_varying, where, whole)
            return jax.tree.map(finish, out_axes, function(whole, *rows), is_leaf=_is_none)

        in_specs = specs, *[_rows(0)] * len(rows)
        out_specs = jax.tree.map(spec, out_axes, is_leaf=_is_none)
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(whole, *rows)

    return by_rows


def _varying(sharding: NamedSharding, part: Any) -> Any:
    """Marks an array as varying over all devices; parts already vary along `fsdp`."""
    axes = BATCH_AXES if _divided_axis(sharding) is None else DATA_AXIS
    return lax.pcast(part, axes, to="varying")


def _mean(sharding: NamedSharding, gradient: Any) -> Any:
    """Returns the mean of a gradient over the devices; gradients of parts are summed over `fsdp` by `gather_parts`."""
    if _divided_axis(sharding) is None:
        return lax.pmean(gradient, BATCH_AXES)
    return lax.pmean(gradient, DATA_AXIS) / sharding.mesh.shape[FSDP_AXIS]


def _is_none(leaf: Any) -> bool:
    return leaf is None


def local_rows(sharding: NamedSharding, batch_size: int) -> Int64[np.ndarray, " rows"]:
    """Returns the rows of a global batch that belong to this process's devices, ascending.

    They need not be contiguous: a mesh may interleave the devices of several processes.

    Args:
      sharding: Sharding of an array with the batch as first axis.
      batch_size: Size of the global batch, a multiple of the number of devices.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def put(sharding: NamedSharding, local: Any) -> Any:
    """Assembles global arrays from every process's rows (its `local_rows`, in order)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def fetch(tree: Any) -> Any:
    """Returns global arrays as whole NumPy arrays on every process."""
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

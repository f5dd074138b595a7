"""Batched map: functions of many rows, compiled for one batch size and run batch by batch over the mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel import sharding


def padded_size(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """Returns the batch size rounded up to a multiple of the number of devices."""
    return -(-batch_size // mesh.size) * mesh.size


def map_batches(
    function: Callable[..., Sequence[Any]],
    mesh: jax.sharding.Mesh,
    batch_size: int,
    *,
    out_axes: tuple[int | None, ...] = (0,),
    load: Callable[..., tuple] | None = None,
) -> Callable[[tuple, tuple], tuple[Any, ...]]:
    """Returns the function (whole, rows) -> outputs, NumPy arrays with as many rows as the inputs.

    Each batch is padded to one compiled shape, a multiple of the number of devices.

    Args:
      function: (*whole, *rows) -> outputs, which is compiled; its name is the program's.
      mesh: Devices; each gets all of `whole` and its part of `rows`, pytrees of arrays with the batch as first axis.
      batch_size: Rows per batch, rounded up to a multiple of the number of devices.
      out_axes: Batch axis of each output, a pytree of arrays; None: the output is None.
      load: (*rows) -> inputs of `function`, such as images for indices; each process loads its own rows. None: the
        identity.
    """
    size = padded_size(batch_size, mesh)
    axes = tuple(axis or 0 for axis in out_axes)
    compiled = _over_mesh(function, mesh, out_axes)
    batched = sharding.batch_sharding(mesh)
    local = sharding.local_rows(batched, size)

    def map_batch(whole: tuple, rows: tuple) -> tuple[Any, ...]:
        padded = jax.tree.map(lambda x: np.resize(x, (size, *x.shape[1:]))[local], rows)
        inputs = padded if load is None else load(*padded)
        outputs = sharding.fetch(compiled(whole, *sharding.put(batched, inputs)))
        count = _num_rows(rows)
        return tuple(
            jax.tree.map(lambda x, axis=axis: np.take(x, range(count), axis), output)
            for output, axis in zip(outputs, axes, strict=True)
        )

    def mapped(whole: tuple, rows: tuple) -> tuple[Any, ...]:
        outputs = []
        for first in range(0, max(1, _num_rows(rows)), size):
            if first:
                stopping.check()
            batch = jax.tree.map(lambda x, first=first: x[first : first + size], rows)
            outputs.append(map_batch(whole, batch))
        return tuple(
            jax.tree.map(lambda *xs, axis=axis: np.concatenate(xs, axis), *batches)
            for *batches, axis in zip(*outputs, axes, strict=True)
        )

    return mapped


def _num_rows(rows: tuple) -> int:
    return len(jax.tree.leaves(rows)[0])


def _over_mesh(
    function: Callable[..., Sequence[Any]],
    mesh: jax.sharding.Mesh,
    out_axes: tuple[int | None, ...],
) -> Callable[..., tuple]:
    """Returns the jitted (whole, *rows) -> outputs, in which each device computes its own rows."""

    def of_rows(whole: tuple, *rows: Any) -> tuple:
        return tuple(function(*whole, *rows))

    program = sharding.over_batch(of_rows, mesh, out_axes=tuple(axis or 0 for axis in out_axes))
    program.__name__ = getattr(
        function, "__name__", of_rows.__name__
    )  # JAX takes the name from it.
    return jax.jit(
        program,
        out_shardings=tuple(
            None if axis is None else sharding.batch_sharding(mesh, axis) for axis in out_axes
        ),
    )

"""A train step as lowered, before any compiler: its operations, and what a plan for GPUs that are not here knows."""

from __future__ import annotations

import time
from typing import Any

import jax

from diffusion_jax.experiment.training import Training
from diffusion_jax.planning import hlo
from diffusion_jax.planning.collectives import Traffic
from diffusion_jax.planning.program import Compiled, local_bytes, num_parameters, state_bytes
from diffusion_jax.training.state import state_shardings
from diffusion_jax.training.step import DeviceBatch


def lower_step(training: Training, batch: DeviceBatch, mesh: jax.sharding.AbstractMesh) -> Compiled:
    """Lowers one train step for GPUs; what only their compiler knows is left out.

    The operations are divided evenly. Of the memory's traffic, the state alone is counted, read and written once; of
    the links', an all-reduce of the gradients around a ring.

    Args:
      training: Training on one device.
      batch: Shapes and dtypes of a whole batch.
      mesh: The GPUs.
    """
    started = time.monotonic()
    traced = training.steps[1].trace(training.template, batch)
    flops, unknown = count_flops(traced.lower(lowering_platforms=("cuda",)))
    template = training.template
    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        template,
        state_shardings(mesh, template),
    )
    state, rows = state_bytes(placed), local_bytes(batch) // mesh.size
    gradients, size = 4 * num_parameters(template), mesh.size
    sent = Traffic(1, gradients, 2 * (size - 1) / size * gradients)
    return Compiled(
        mesh=dict(mesh.shape),
        num_parameters=num_parameters(template),
        state=state,
        batch=rows,
        arguments=sum(state.values()) + rows,
        unaliased=0,
        temporaries=0,
        code=0,
        flops=flops / size,
        bytes_accessed=2.0 * sum(state.values()),
        cycles={},
        collectives={"all-reduce": sent} if size > 1 else {},
        unknown_loops=unknown,
        seconds=time.monotonic() - started,
        lowered=True,
    )


def count_flops(lowered: Any) -> tuple[float, int]:
    """Returns the operations of a program's products, and the number of loops of unknown length, counted once.

    They are those of matrix products, convolutions and kernels, which peaks of chips are for; loops are repeated. They
    are read from the program, since JAX analyzes its cost for the CPU's backend alone.

    Args:
      lowered: A `jax.stages.Lowered`. Of a program for several devices, a part inside `jax.shard_map` counts as one
        device's.
    """
    module = hlo.parse(lowered.compiler_ir(dialect="hlo").as_hlo_module().to_string())
    flops = hlo.product_flops(module) + hlo.kernels(module).flops
    return float(flops), hlo.repeats(module).unknown

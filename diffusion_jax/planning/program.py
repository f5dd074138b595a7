"""Train steps compiled without data or arrays, and the compiler's report on them."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax

from diffusion_jax.experiment.training import Training
from diffusion_jax.planning import hlo
from diffusion_jax.planning.collectives import Traffic, traffic
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import DeviceBatch


class DoesNotFit(Exception):
    """The compiler refuses the program: it needs more memory than the devices have."""

    def __init__(self, needed: int | None, limit: int | None):
        super().__init__(f"needs {needed} of {limit} bytes")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled train step, with bytes and operations per device and step.

    Attributes:
      mesh: Devices along each axis.
      num_parameters: Numbers that are trained, over all devices.
      state: Bytes of each part of the state (parameters, optimizer, averages, other).
      batch: Bytes of a device's rows.
      arguments: Bytes of all arguments in memory (on TPUs padded to tiles).
      unaliased: Bytes of results that do not reuse an argument's memory.
      temporaries: Bytes of temporary buffers.
      code: Bytes of the program itself.
      flops: XLA's count of operations, including repetitions in loops.
      bytes_accessed: Bytes read and written, likewise, except for arrays that stay on the chip.
      cycles: Cycles by opcode that the TPU compiler expects, including repetitions; empty for other devices.
      kernels: Custom calls of a TPU's program, of which no cycles are expected; of other devices nothing is counted.
      collectives: Traffic by kind of collective.
      unknown_loops: Number of loops with an unknown trip count, which are counted once.
      seconds: Seconds to trace and compile it, or to load it from JAX's cache.
      lowered: Whether it was lowered alone, so that temporaries and code are not known: both are 0.
    """

    mesh: dict[str, int]
    num_parameters: int
    state: dict[str, int]
    batch: int
    arguments: int
    unaliased: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    cycles: dict[str, int]
    collectives: dict[str, Traffic]
    unknown_loops: int
    seconds: float
    lowered: bool = False
    kernels: hlo.Kernels = hlo.Kernels(0, 0, 0)

    @property
    def total(self) -> int:
        """Bytes on a device; results that reuse an argument's memory count once."""
        return self.arguments + self.unaliased + self.temporaries + self.code

    @property
    def activations(self) -> int:
        """Temporaries minus one float32 copy of a device's part of the parameters, for the gradients.

        The compiler reports only their sum, so the difference includes values saved for the backward pass, gathered
        parameters, and buffers of single operations.
        """
        return max(0, self.temporaries - self.state["parameters"])


def compile_step(training: Training, batch: DeviceBatch) -> Compiled:
    """Compiles one train step.

    Args:
      training: Training on real devices, or on abstract ones of a topology.
      batch: Shapes, dtypes and shardings of a batch.

    Raises:
      DoesNotFit: The compiler refuses the program.
    """
    started = time.monotonic()
    lowered = training.steps[1].lower(training.template, batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(*_said_memory(str(error))) from error
    seconds = time.monotonic() - started
    template, memory = training.template, compiled.memory_analysis()
    costs, module = compiled.cost_analysis() or {}, hlo.parse(compiled.as_text())
    again, cycles = hlo.factors(module), hlo.cycles(module)
    return Compiled(
        mesh=dict(training.mesh.shape),
        num_parameters=num_parameters(template),
        state=state_bytes(template),
        batch=local_bytes(batch),
        arguments=memory.argument_size_in_bytes,
        unaliased=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs.get("flops", 0.0) * again.flops,
        bytes_accessed=costs.get("bytes accessed", 0.0) * again.bytes,
        cycles=cycles,
        collectives=traffic(module),
        unknown_loops=again.unknown,
        seconds=seconds,
        kernels=hlo.kernels(module) if cycles else hlo.Kernels(0, 0, 0),
    )


def num_parameters(template: TrainState) -> int:
    """Returns the number of parameters of a state, over all devices."""
    return sum(x.size for x in jax.tree.leaves(template.params))


def state_bytes(template: TrainState) -> dict[str, int]:
    """Returns the bytes per device of each part of a state."""
    return {
        "parameters": local_bytes(template.params),
        "optimizer": local_bytes(template.opt_state),
        "averages": local_bytes(template.ema),
        "other": local_bytes((template.step, template.aux)),
    }


def local_bytes(tree: Any) -> int:
    """Returns the bytes per device of arrays or `jax.ShapeDtypeStruct`s."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _said_memory(message: str) -> tuple[int | None, int | None]:
    """Returns (bytes needed, bytes available) from XLA's message, as in "Used 20.5G of 15.7G hbm"."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if not found:
        return None, None
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(found[1]) * unit[found[2]]), int(float(found[3]) * unit[found[4]])

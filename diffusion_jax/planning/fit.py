"""Search for the first change, each of them compiled, that makes a training fit into memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffusion_jax.lifecycle import stopping
from diffusion_jax.planning.program import Compiled, DoesNotFit

Changes = dict[str, Any]  # Config field -> value.
MOST_KEPT = ("conv", "attention")  # The results of a recomputed block that cost most to recompute.


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change and its outcome.

    Attributes:
      changes: Changed fields.
      step: The compiled step; None if the compiler refused it.
      needed: Bytes needed on a device; None: not reported by the compiler.
      fits: Whether the device has that much memory; None: not known, as only a part of what is needed is.
    """

    changes: Changes
    step: Compiled | None
    needed: int | None
    fits: bool | None


def attempt(
    compile_step: Callable[[Changes], Compiled], memory: int | None, changes: Changes | None = None
) -> Attempt:
    """Compiles a changed training.

    Args:
      compile_step: Changes -> compiled step; raises `DoesNotFit`.
      memory: Memory of a device in bytes; None: unknown, so everything that compiles fits.
      changes: Fields to change.
    """
    changes = changes or {}
    try:
        step = compile_step(changes)
    except DoesNotFit as error:
        return Attempt(changes, None, error.needed, False)
    fits = memory is None or step.total <= memory
    return Attempt(changes, step, step.total, None if fits and step.lowered else fits)


def search(
    compile_step: Callable[[Changes], Compiled], memory: int | None, candidates: Iterable[Changes]
) -> Iterator[Attempt]:
    """Yields attempts up to the first one that fits, or may."""
    for changes in candidates:
        stopping.check()
        tried = attempt(compile_step, memory, changes)
        yield tried
        if tried.fits is not False:
            return


def candidates(
    num_devices: int, *, batch_size: int, accumulate: int, remat: Any, data: int, fsdp: int
) -> list[Changes]:
    """Returns the changes in order of cost: micro-batches, recomputation, sharding of the state, and combinations.

    Smaller micro-batches only lower the utilization; recomputation costs operations; `fsdp` costs messages.

    Args:
      num_devices: Number of the mesh's devices.
      batch_size: The present train.batch_size.
      accumulate: The present train.accumulate.
      remat: The present model.remat; "blocks" if the network has no such option, since nothing can be recomputed.
      data: The present mesh.data.
      fsdp: The present mesh.fsdp.
    """
    micro = _micro_batches(batch_size // num_devices, accumulate)
    recomputing = _recomputing(remat)
    divided = _divided(num_devices, data, fsdp)
    least = recomputing[-1] if recomputing else {}
    combined = [{**least, **parts} for parts in divided] if least else []
    smallest = [{**micro[-1], **least}] if micro and least else []
    everything = [{**micro[-1], **least, **divided[-1]}] if micro and divided else []
    return [*micro, *recomputing, *divided, *combined, *smallest, *everything]


def _micro_batches(rows: int, accumulate: int) -> list[Changes]:
    counts = [2**power for power in range(1, rows.bit_length()) if rows % 2**power == 0]
    return [{"train.accumulate": count} for count in counts if count > accumulate]


def _recomputing(remat: Any) -> list[Changes]:
    if remat == "blocks":
        return []
    kept = [] if remat != "none" else [{"model.remat": MOST_KEPT}]
    return [*kept, {"model.remat": "blocks"}]


def _divided(num_devices: int, data: int, fsdp: int) -> list[Changes]:
    found = []
    for parts in (2**power for power in range(1, num_devices.bit_length())):
        if parts > fsdp and num_devices % parts == 0:
            along_data = {} if data == -1 else {"mesh.data": num_devices // parts}
            found.append({"mesh.fsdp": parts, **along_data})
    return found


def flags(changes: Changes) -> str:
    """Formats the changes as command-line flags."""

    def written(value: Any) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    return " ".join(f"--config.{name}={written(value)}" for name, value in changes.items())

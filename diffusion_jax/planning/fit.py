"""What to change so that a training fits into memory: the first of a list of changes that does, each one compiled."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.config import options_of
from diffusion_jax.lifecycle import stopping
from diffusion_jax.planning.program import Compiled, DoesNotFit

Changes = dict[str, Any]  # Name of a config field -> its value.
MOST_KEPT = ("conv", "attention")  # Of a recomputed block: what costs most to compute again.


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change and what came of it.

    Attributes:
      changes: Fields that were changed.
      step: The compiled step; None if the compiler refused it.
      needed: Bytes that it needs on a device; None if the compiler did not say it.
      fits: Whether there are as many.
    """

    changes: Changes
    step: Compiled | None
    needed: int | None
    fits: bool


def attempt(
    compile_step: Callable[[ConfigDict], Compiled],
    config: ConfigDict,
    memory: int | None,
    changes: Changes | None = None,
) -> Attempt:
    """Compiles a changed config.

    Args:
      compile_step: Config -> compiled step; raises `DoesNotFit`.
      config: A valid config.
      memory: Bytes of a device; None: not known, so whatever the compiler takes fits.
      changes: What to change of it.
    """
    changes = changes or {}
    config = config.copy_and_resolve_references()
    for name, value in changes.items():
        group, field = name.split(".")
        with config.ignore_type():  # A field may be a name or a tuple of names.
            config[group][field] = value
    try:
        step = compile_step(config)
    except DoesNotFit as error:
        return Attempt(changes, None, error.needed, False)
    return Attempt(changes, step, step.total, memory is None or step.total <= memory)


def search(
    compile_step: Callable[[ConfigDict], Compiled],
    config: ConfigDict,
    memory: int | None,
    num_devices: int,
) -> Iterator[Attempt]:
    """Yields one attempt after the other, up to the first that fits.

    See `attempt`; `num_devices` is that of the mesh.
    """
    for changes in candidates(config, num_devices):
        stopping.check()
        tried = attempt(compile_step, config, memory, changes)
        yield tried
        if tried.fits:
            return


def candidates(config: ConfigDict, num_devices: int) -> list[Changes]:
    """Returns the changes by what they cost: micro-batches, recomputing, dividing the state, and more than one of them.

    Smaller micro-batches cost nothing but the devices' use; to recompute costs operations; `fsdp` messages.
    """
    micro = _micro_batches(config, num_devices)
    remat = _recomputing(config)
    divided = _divided(config, num_devices)
    least = remat[-1] if remat else {}
    combined = [{**least, **parts} for parts in divided] if least else []
    smallest = [{**micro[-1], **least}] if micro and least else []
    everything = [{**micro[-1], **least, **divided[-1]}] if micro and divided else []
    return [*micro, *remat, *divided, *combined, *smallest, *everything]


def _micro_batches(config: ConfigDict, num_devices: int) -> list[Changes]:
    rows, now = config.train.batch_size // num_devices, config.train.accumulate
    counts = [2**power for power in range(1, rows.bit_length()) if rows % 2**power == 0]
    return [{"train.accumulate": count} for count in counts if count > now]


def _recomputing(config: ConfigDict) -> list[Changes]:
    if "remat" not in options_of(config, "model") or config.model.remat == "blocks":
        return []
    kept = [] if config.model.remat != "none" else [{"model.remat": MOST_KEPT}]
    return [*kept, {"model.remat": "blocks"}]


def _divided(config: ConfigDict, num_devices: int) -> list[Changes]:
    found = []
    for parts in (2**power for power in range(1, num_devices.bit_length())):
        if parts > config.mesh.fsdp and num_devices % parts == 0:
            data = {} if config.mesh.data == -1 else {"mesh.data": num_devices // parts}
            found.append({"mesh.fsdp": parts, **data})
    return found


def flags(changes: Changes) -> str:
    """Returns the changes as the command takes them."""

    def written(value: Any) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    return " ".join(f"--config.{name}={written(value)}" for name, value in changes.items())

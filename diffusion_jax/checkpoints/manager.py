"""Orbax's checkpoint manager as a run uses it: what it writes, when it commits, what it keeps, how its processes wait.

Orbax writes a step in the background and commits it when all is there: on a file system by one rename,
in a bucket by a last object.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from etils import epath

from diffusion_jax.checkpoints import arrays
from diffusion_jax.parallel.distributed import exchange

# How the folders begin that Orbax has not committed, on a file system.
UNFINISHED = ".orbax-checkpoint-tmp"
# Where Orbax moves old steps, so that a reader finds a whole checkpoint or none; not in a bucket.
DELETED = ".deleted"


class FailedElsewhere(RuntimeError):
    """Another process has failed; it says why."""


def open_manager(
    directory: epath.Path,
    names: Iterable[str],
    *,
    keep_last: int,
    keep_every: int | None,
    foreign: Iterable[int],
    seal: Callable[[], None],
) -> Any:
    """Returns an `orbax.checkpoint.CheckpointManager`; every process calls this.

    Args:
      directory: Folder of the checkpoints; it is there.
      names: Of the parts.
      keep_last: Number of newest checkpoints to keep.
      keep_every: Checkpoints whose step is a multiple of it are kept too; None: no such ones.
      foreign: Folders named like steps that are no checkpoints: they are neither counted nor deleted.
      seal: Called by process 0 when all arrays of a step are written, before Orbax commits it.
    """
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        """Leaves JAX's sync point alone, of which only the training's loop may ask, once a step."""

        def reached_preemption(self, step: int) -> bool:
            del step
            return False

    policies = ocp.checkpoint_managers.preservation_policy
    kept: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
        kept.append(policies.EveryNSteps(keep_every))
    policy = _OursAlone(frozenset(foreign), policies.AnyPreservationPolicy(kept))
    options = _options(policy, seal)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in names:
        registry.add(name, ocp.args.PyTreeSave, arrays.handler())
    _quiet_orbax()
    return Manager(directory, options=options, handler_registry=registry)


def _options(policy: Any, seal: Callable[[], None]) -> Any:
    """Returns the options of a manager that keeps checkpoints by a policy and seals them."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManagerOptions(
        create=False,
        save_root_metadata=False,
        lightweight_initialize=True,
        # The others may not see yet in a shared folder what process 0 sees.
        single_host_load_and_broadcast=True,
        # Named, they meet in the coordination service, and compute nothing for it.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="checkpoints"
        ),
        preservation_policy=policy,
        todelete_subdir=DELETED,
        async_options=ocp.options.AsyncOptions(
            barrier_sync_fn=_meet,
            post_finalization_callback=seal,
            # Else a failure to make them would leave the other processes to wait for a signal.
            create_directories_asynchronously=False,
        ),
    )


class _OursAlone:
    """Asks a policy of Orbax which checkpoints to keep, and keeps whatever else has a step's name."""

    def __init__(self, foreign: frozenset[int], policy: Any) -> None:
        self._foreign, self._policy = foreign, policy

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether to keep each of them; Orbax calls this."""
        ours = [info for info in checkpoints if info.step not in self._foreign]
        kept = iter(self._policy.should_preserve(ours, context=context))
        return [info.step in self._foreign or next(kept) for info in checkpoints]


def unfinished(directory: epath.Path, step: int) -> epath.Path:
    """Returns the folder where Orbax gathers a step: in a bucket, where nothing is renamed, the step's own."""
    return next(directory.glob(f"{step}{UNFINISHED}*"), directory / str(step))


def is_committed(path: epath.Path) -> bool:
    """Whether Orbax has committed a folder that is named by a step."""
    import orbax.checkpoint as ocp

    return ocp.utils.is_checkpoint_finalized(path)


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for all processes, and raises if one has failed, which Orbax's own barriers wait out.

    One that fails goes straight to the end of a save, where it sets that none is under way.

    Raises:
      FailedElsewhere: Another process is at that end, and this one is not.
    """
    del timeout_ms  # The exchange has its own.
    at_end = "set_value" in key
    while len(set(exchange("checkpoint", key))) > 1:
        if not at_end:
            raise FailedElsewhere("another process has failed")


@functools.cache
def _quiet_orbax() -> None:
    """What Orbax's threads log as errors with tracebacks, it also raises to us."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in str(record.msg))

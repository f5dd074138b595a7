"""Orbax's checkpoint manager, configured for a run: handlers, commits, retention and barriers.

Orbax writes a step in the background and commits it once it is complete: on a file system by one
rename, in a bucket by a last object.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from etils import epath

from diffusion_jax.checkpoints import arrays
from diffusion_jax.parallel.distributed import exchange

# Marks folders that Orbax has not committed, on a file system.
UNFINISHED = ".orbax-checkpoint-tmp"
# Folder that Orbax moves old steps to, so that a reader finds a whole checkpoint or none; not used in a bucket.
DELETED = ".deleted"


class FailedElsewhere(RuntimeError):
    """Another process has failed, and reports why itself."""


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
      directory: Folder of the checkpoints, which must exist.
      names: Names of the parts.
      keep_last: Number of newest checkpoints to keep.
      keep_every: Also keep checkpoints at multiples of this step; None: only the newest.
      foreign: Folders named like steps that are not checkpoints; they are neither counted nor deleted.
      seal: Called by process 0 when all arrays of a step are written, before Orbax commits it.
    """
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        """Does not query JAX's preemption sync point, which only the training loop may do, once per step."""

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
    """Returns the options of a manager with a retention policy and a seal."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManagerOptions(
        create=False,
        save_root_metadata=False,
        lightweight_initialize=True,
        # Other processes may not see yet what process 0 sees in a shared folder.
        single_host_load_and_broadcast=True,
        # With these names the barriers use the coordination service rather than a device computation.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="checkpoints"
        ),
        preservation_policy=policy,
        todelete_subdir=DELETED,
        async_options=ocp.options.AsyncOptions(
            barrier_sync_fn=_meet,
            post_finalization_callback=seal,
            # Otherwise a failure to create them would leave the other processes waiting for a signal.
            create_directories_asynchronously=False,
        ),
    )


class _OursAlone:
    """Retention policy that applies one of Orbax's to checkpoints and keeps all other folders named like steps."""

    def __init__(self, foreign: frozenset[int], policy: Any) -> None:
        self._foreign, self._policy = foreign, policy

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether to keep each checkpoint; called by Orbax."""
        ours = [info for info in checkpoints if info.step not in self._foreign]
        kept = iter(self._policy.should_preserve(ours, context=context))
        return [info.step in self._foreign or next(kept) for info in checkpoints]


def unfinished(directory: epath.Path, step: int) -> epath.Path:
    """Returns the folder that Orbax writes a step to; in a bucket, without renames, the step's own."""
    return next(directory.glob(f"{step}{UNFINISHED}*"), directory / str(step))


def is_committed(path: epath.Path) -> bool:
    """Whether Orbax has committed a step's folder."""
    import orbax.checkpoint as ocp

    return ocp.utils.is_checkpoint_finalized(path)


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for all processes and raises if one has failed, unlike Orbax's own barriers, which wait for a timeout.

    A process that fails goes straight to the end of a save, where it marks the save as finished.

    Raises:
      FailedElsewhere: Another process is at the end, and this one is not.
    """
    del timeout_ms  # The exchange has its own.
    at_end = "set_value" in key
    while len(set(exchange("checkpoint", key))) > 1:
        if not at_end:
            raise FailedElsewhere("another process has failed")


@functools.cache
def _quiet_orbax() -> None:
    """Silences Orbax's threads, which log tracebacks of errors that Orbax also raises."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in str(record.msg))

"""Preemption: all processes stop training at the same step after any of them receives SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax

# Returns whether to stop now. Every process calls it equally often, and all get the same answer.
AskStop = Callable[[], bool]


@contextlib.contextmanager
def stop_point(requested: Callable[[], bool]) -> Iterator[AskStop]:
    """Context in which a preemption notice to one process stops all, by JAX's preemption sync point.

    JAX handles SIGTERM meanwhile, so a second SIGTERM does not end the process at once, but a second SIGINT does. JAX's
    threads notify the others and choose a step that none has begun, so that no step waits for a decision.

    Args:
      requested: Whether this process's own handler has received a signal: SIGINT, or SIGTERM if there is only one
        process.
    """
    if jax.process_count() == 1:
        yield requested
        return
    from jax._src import (
        distributed,  # The public API would take SIGTERM from the start of the program.
    )
    from jax.experimental import multihost_utils

    jax.config.update("jax_enable_preemption_service", True)
    distributed.global_state.initialize_preemption_sync_manager()
    manager = distributed.global_state.preemption_sync_manager
    assert manager is not None
    handler = signal.getsignal(signal.SIGTERM)  # Python does not know JAX's handler.
    asked = 0
    passed_on = False

    def stop() -> bool:
        nonlocal asked, passed_on
        asked += 1
        if requested() and not passed_on:
            passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        return multihost_utils.reached_preemption_sync_point(asked)

    try:
        yield stop
    finally:
        manager.shutdown()
        signal.signal(signal.SIGTERM, handler)

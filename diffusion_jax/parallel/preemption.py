"""When the processes of a training stop: all at the same step, after SIGTERM, a preemption's notice, to any of them."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax

# Whether to stop now. Every process asks equally often, and all get the same answer.
AskStop = Callable[[], bool]


@contextlib.contextmanager
def stop_point(requested: Callable[[], bool]) -> Iterator[AskStop]:
    """Within, a notice to one process stops all, by JAX's preemption sync point.

    JAX takes SIGTERM for itself meanwhile, so that a second one does not end the process at once; SIGINT does. JAX's
    threads tell the others, and choose a step that none has begun, so that no step waits for a decision.

    Args:
      requested: Whether a signal has come to this process's own handler, such as SIGINT, and, of one process by
        itself, SIGTERM.
    """
    if jax.process_count() == 1:
        yield requested
        return
    from jax._src import (
        distributed,  # The public way would take SIGTERM from the start of the program on.
    )
    from jax.experimental import multihost_utils

    jax.config.update("jax_enable_preemption_service", True)
    distributed.global_state.initialize_preemption_sync_manager()
    manager = distributed.global_state.preemption_sync_manager
    assert manager is not None
    handler = signal.getsignal(signal.SIGTERM)  # Python does not know of JAX's.
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

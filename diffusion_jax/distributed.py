"""Several processes, one run: joins the processes of a TPU pod, a cluster, or one machine.

Each process runs the same command. On a TPU pod or under Slurm set DIFFUSION_JAX_DISTRIBUTED=1 (the launcher
does); elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import os
import socket
import sys
import time

import jax

from diffusion_jax.errors import InputError, RunError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
JOIN_TIMEOUT = 300
HEARTBEAT_TIMEOUT = 60
LEAVE_TIMEOUT = 10


def initialize() -> None:
    """Joins the other processes if the environment says that there are any. Call it before any other use of JAX.

    Raises:
      InputError: The variables contradict each other.
      RunError: The coordinator cannot be reached, or no pod or cluster is found.
    """
    # JAX's own would take SIGTERM away from our handler, and a preempted run would not be saved.
    jax.config.update("jax_enable_preemption_service", False)
    address = os.environ.get(ADDRESS)
    if address:
        _join(address, _integer(COUNT), _integer(INDEX))
    elif os.environ.get("DIFFUSION_JAX_DISTRIBUTED") == "1":
        _initialize()


def _integer(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; with {ADDRESS} set it must be a number")
    return int(text)


def _join(address: str, count: int, index: int) -> None:
    if not index < count:
        raise InputError(f"{INDEX} is {index}; it must be below {COUNT}, {count}")
    if index > 0:
        _wait_for(address)
    _initialize(address, count, index)


def _initialize(
    address: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins at an address, count and index, or at those that JAX finds for a pod or a cluster.

    The time-out at the end stays JAX's 5 minutes: the first process may finish its pictures while the
    others wait for it there, and JAX would abort them all.
    """
    # The CPU backend's own collectives work within one process only. Other backends ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise RunError(f"cannot join the other processes: {line}") from error


def _wait_for(address: str) -> None:
    """Probes the coordinator: JAX itself would abort the process without a Python error."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{ADDRESS} is {address!r}; it must be host:port")
    deadline = time.monotonic() + JOIN_TIMEOUT
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"no coordinator at {address} within {JOIN_TIMEOUT} s: {error}"
                ) from error
            time.sleep(0.5)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def leave(status: int) -> None:
    """Call it before an exit after an error: ends this process at once unless all end alike.

    An ordinary exit would wait for the other processes, which wait for this one. If it vanishes instead,
    their next collective operation fails. Processes that all leave soon exit in the ordinary way.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    try:
        multihost.get_barrier_sync_fn()(key="leave", timeout_ms=LEAVE_TIMEOUT * 1000)
    except Exception:  # Whatever it is: the others are not there.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

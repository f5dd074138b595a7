"""Several processes, one run: joins the processes of a TPU pod, a cluster, or one machine.

Each process runs the same command. On a TPU pod or under Slurm set DIFFUSION_JAX_DISTRIBUTED=1 (the launcher
does); elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import os
import socket
import time

import jax

from diffusion_jax.errors import InputError, RunError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
JOIN_TIMEOUT = 300
HEARTBEAT_TIMEOUT = 60


def initialize() -> None:
    """Joins the other processes if the environment says that there are any. Call it before any other use of JAX.

    Raises:
      InputError: The variables contradict each other.
      RunError: The coordinator cannot be reached.
    """
    # JAX's own would take SIGTERM away from our handler, and a preempted run would not be saved.
    jax.config.update("jax_enable_preemption_service", False)
    address = os.environ.get(ADDRESS)
    if address:
        _join(address, _integer(COUNT), _integer(INDEX))
    elif os.environ.get("DIFFUSION_JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def _integer(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; with {ADDRESS} set it must be a number")
    return int(text)


def _join(address: str, count: int, index: int) -> None:
    if not index < count:
        raise InputError(f"{INDEX} is {index}; it must be below {COUNT}, {count}")
    # The CPU backend's own collectives work within one process only. Other backends ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if index > 0:
        _wait_for(address)
    jax.distributed.initialize(
        address,
        count,
        index,
        initialization_timeout=JOIN_TIMEOUT,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    )


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

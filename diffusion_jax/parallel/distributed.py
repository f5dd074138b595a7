"""Several processes, one run: joins the processes of a TPU pod, a cluster, or one machine; the CPU devices of one.

Each process runs the same command. On a TPU pod or under Slurm set DIFFUSION_JAX_DISTRIBUTED=1 (the launcher
does); elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import collections
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from diffusion_jax.errors import InputError, RunError, reason

T = TypeVar("T")

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
JOIN_TIMEOUT = 300
HEARTBEAT_TIMEOUT = 60
LEAVE_TIMEOUT = 10
EXCHANGE_TIMEOUT = 1200

_exchanges: dict[str, Any] = collections.defaultdict(itertools.count)


def initialize() -> None:
    """Joins the other processes if the environment says that there are any. Call it before any other use of JAX.

    A process by itself gets a CPU device a core, unless the user has said how many it gets.

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
    else:
        _use_cores()


def _use_cores() -> None:
    """Makes a CPU device of each core that this process may use. It is not used where JAX finds an accelerator."""
    chosen = jax.config.values["jax_num_cpu_devices"] != -1  # JAX_NUM_CPU_DEVICES sets this too.
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(
        RuntimeError
    ):  # In a program that has used JAX, devices are as they are.
        jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    if jax.process_count() > 1:
        _connect()


def _connect() -> None:
    """Computes something on all devices: gloo connects at the first such computation, within 30 s.

    Here all processes are at the same point. Later one may be long in compiling, say, while the others wait.
    """
    import numpy as np
    from jax.experimental import multihost_utils

    exchange("connect", "")
    multihost_utils.process_allgather(np.zeros(1))  # One device a process.
    multihost_utils.sync_global_devices("connect")  # All devices.


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


def exchange(name: str, text: str) -> list[str]:
    """Returns the text of every process, in their order; waits for all of them.

    The coordination service carries the texts, not the devices: a device computation of a background
    thread could cross those of the training.

    Args:
      name: Names the occasion; every process calls this equally often for each name.
      text: What this process has to say.
    """
    if jax.process_count() == 1:
        return [text]
    from jax._src import distributed  # There is no public way to the key-value store.

    client: Any = distributed.global_state.client
    key = f"diffusion_jax/{name}/{next(_exchanges[name])}"
    client.key_value_set(f"{key}/{jax.process_index()}", f"={text}")
    timeout = EXCHANGE_TIMEOUT * 1000
    texts = [
        client.blocking_key_value_get(f"{key}/{i}", timeout) for i in range(jax.process_count())
    ]
    return [text[1:] for text in texts]


def all_do(name: str, action: Callable[[], T]) -> T:
    """Does the action on every process; if it fails on one, every process raises.

    Args:
      name: See `exchange`.
      action: What to do; each process gets the value of its own.

    Raises:
      Exception: What this process's own action raised.
      RunError: What another one's did. An InputError there is one here.
    """
    error, value = None, None
    try:
        value = action()
    except Exception as raised:
        error = raised
    outcome = {"reason": reason(error), "input": isinstance(error, InputError)} if error else {}
    outcomes = [json.loads(text) for text in exchange(name, json.dumps(outcome))]
    if error is not None:
        raise error
    for process, outcome in enumerate(outcomes):
        if outcome:
            kind = InputError if outcome["input"] else RunError
            raise kind(f"process {process}: {outcome['reason']}")
    return value  # pyright: ignore[reportReturnType]


def first_decides(name: str, decide: Callable[[], T]) -> T:
    """Returns what process 0 decides, on every process; the others do not look for themselves.

    What they would look at, a folder that all share, may have changed by then, or not show there yet.

    Args:
      name: See `exchange`.
      decide: Called on process 0 alone; its value must be JSON-serialisable.

    Raises:
      Exception: What `decide` raised; on the other processes as in `all_do`.
    """
    decided: Any = all_do(name, decide if jax.process_index() == 0 else lambda: None)
    return json.loads(exchange(name, json.dumps(decided))[0])


def is_another_than_first() -> bool:
    """Whether this is one of several processes and not the first; starts no device."""
    return jax.distributed.is_initialized() and jax.process_index() > 0


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

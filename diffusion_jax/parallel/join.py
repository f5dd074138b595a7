"""Start of the processes of a run on a TPU pod, a cluster or one machine, and of a process's CPU devices.

Each process runs the same command. Under Slurm's `srun`, Open MPI's `mpirun`, and on TPUs of GKE, JAX reads the number
of processes from the environment; elsewhere three variables or flags give it (`ProcessId`).
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

import jax

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel import distributed, peers

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# 1: join as JAX's cluster detection says (needed on a TPU pod, which is not recognized here); 0: run alone.
SWITCH = "DIFFUSION_JAX_DISTRIBUTED"
JOIN_TIMEOUT = 300
# Longer than our own watch (`peers.SILENCE`), which names the lost process; JAX's just aborts.
HEARTBEAT_TIMEOUT = 100
_LAUNCHERS = (
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
)  # Number of processes started, by launcher.


class ProcessId(NamedTuple):
    """Identity of one of several processes.

    Attributes:
      address: host:port of the coordinator, process 0.
      processes: Number of processes.
      number: Index of this process, from 0.
    """

    address: str
    processes: int
    number: int


def initialize(process: ProcessId | None = None) -> None:
    """Joins the other processes, if there are any. Call it before any other use of JAX.

    A single process gets one CPU device per core, unless the user has set their number.

    Args:
      process: Identity of this process; None: from the environment.

    Raises:
      InputError: The variables contradict each other, or the coordinator cannot be reached.
      RunError: A pod or cluster was expected, but none is found.
    """
    # JAX's own service would take SIGTERM away from our handler from now on; `preemption` enables it while training.
    jax.config.update("jax_enable_preemption_service", False)
    process = process or _process_of_environment()
    if process is not None:
        _check(process)
        if process.number > 0:
            _wait_for(process.address)
        _join(process)
    elif _is_started_by_a_launcher():
        _join(None)
    else:
        _use_cores()
        _check_platforms()


def _process_of_environment() -> ProcessId | None:
    address = os.environ.get(ADDRESS)
    if not address or os.environ.get(SWITCH) == "0":
        return None
    return ProcessId(address, _integer(COUNT), _integer(INDEX))


def _is_started_by_a_launcher() -> bool:
    """Whether JAX can read this process's identity from the environment."""
    switch = os.environ.get(SWITCH, "")
    if switch in ("0", "1"):
        return switch == "1"
    started = (os.environ.get(name, "") for name in _LAUNCHERS)
    several_tpus = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return several_tpus or any(count.isdecimal() and int(count) > 1 for count in started)


def _integer(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; with {ADDRESS} set it must be a number")
    return int(text)


def _check(process: ProcessId) -> None:
    host, _, port = process.address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"the coordinator's address is {process.address!r}; it must be host:port")
    if not 0 <= process.number < process.processes:
        raise InputError(
            f"this process is number {process.number} of {process.processes}; numbers go from 0 to "
            f"{process.processes - 1}"
        )


def _join(process: ProcessId | None) -> None:
    """Joins with the given identity, or with the one that JAX detects on a pod or a cluster.

    The shutdown timeout stays at JAX's 5 minutes: the others wait there while the first process finishes
    its pictures, and a shorter timeout would abort them all.
    """
    # The CPU backend's default collectives work within one process only. Other backends ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *(process or (None, None, None)),
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise RunError(f"cannot join the other processes: {line}") from error
    _check_platforms()
    if jax.process_count() > 1:
        _connect()
        peers.watch()


def _connect() -> None:
    """Runs a computation on all devices: gloo connects at the first one, within 30 s.

    All processes are at the same point here. Later, one may still be compiling while the others wait.
    """
    import numpy as np
    from jax.experimental import multihost_utils

    distributed.exchange("connect", "")
    multihost_utils.process_allgather(np.zeros(1))  # One device per process.
    multihost_utils.sync_global_devices("connect")  # All devices.


def _wait_for(address: str) -> None:
    """Waits until the coordinator can be reached: JAX itself would abort the process without a Python error.

    Raises:
      InputError: The coordinator cannot be reached.
      Stopped: A signal arrived during the wait.
    """
    started = time.monotonic()
    while problem := peers.unreachable(address):
        if time.monotonic() - started > JOIN_TIMEOUT:
            raise InputError(
                f"no coordinator (process 0) at {address}: tried for {JOIN_TIMEOUT} s, {problem}"
            )
        stopping.check()
        time.sleep(0.5)


def _use_cores() -> None:
    """Configures one CPU device per available core; it has no effect if JAX finds an accelerator.

    Raises:
      InputError: JAX_NUM_CPU_DEVICES is not a valid number of devices.
    """
    chosen = jax.config.values["jax_num_cpu_devices"]  # JAX_NUM_CPU_DEVICES sets this too.
    if chosen != -1 and chosen < 1:
        raise InputError(f"JAX_NUM_CPU_DEVICES is {chosen}; it must be at least 1")
    if chosen != -1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # The devices cannot change once JAX has been used.
        jax.config.update("jax_num_cpu_devices", cores())


def _check_platforms() -> None:
    """Initializes JAX's devices, with an error of one line if there are none.

    Raises:
      InputError: JAX_PLATFORMS names a platform that is not available.
      RunError: The devices cannot be used, for instance because another process holds them.
    """
    try:
        jax.local_devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # AssertionError: a plug-in is not installed.
        line = str(error).partition("\n")[0] or "it finds no device of that kind"
        named = jax.config.values.get("jax_platforms")
        if named:
            raise InputError(
                f"JAX_PLATFORMS is {named!r}, which JAX cannot use here: {line}"
            ) from error
        raise RunError(f"JAX finds no device that it can use: {line}") from error


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

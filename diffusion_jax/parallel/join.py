"""Joins the processes of a TPU pod, a cluster, or one machine to one run; and the CPU devices of one process.

Each process runs the same command. Under Slurm's `srun`, Open MPI's `mpirun`, and on TPUs of GKE, JAX reads from the
environment how many there are; elsewhere three variables or flags say so (`ProcessId`).
"""

import contextlib
import os
import time
from typing import NamedTuple

import jax

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel import distributed, peers

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# 1: the environment is one that JAX knows, which is not found out by itself on a TPU pod; 0: this process is alone.
SWITCH = "DIFFUSION_JAX_DISTRIBUTED"
JOIN_TIMEOUT = 300
# Longer than our own watch (`peers.SILENCE`), which can name the process that is gone; JAX's aborts this one.
HEARTBEAT_TIMEOUT = 100
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # Each says how many it has started.


class ProcessId(NamedTuple):
    """One of several processes.

    Attributes:
      address: host:port where process 0 is reached.
      processes: How many there are.
      number: Number of this one, from 0.
    """

    address: str
    processes: int
    number: int


def initialize(process: ProcessId | None = None) -> None:
    """Joins the other processes, if there are any. Call it before any other use of JAX.

    A process by itself gets a CPU device a core, unless the user has said how many it gets.

    Args:
      process: This process's process; None: as the environment says.

    Raises:
      InputError: The variables contradict each other, or the coordinator cannot be reached.
      RunError: No pod or cluster is found where there should be one.
    """
    # JAX's own would take SIGTERM away from our handler from now on; `preemption` asks for it while training.
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
    """Whether JAX will find this process's process in the environment."""
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
    """Joins at a process, or at the one that JAX finds for a pod or a cluster.

    The time-out at the end stays JAX's 5 minutes: the first process may finish its pictures while the
    others wait for it there, and JAX would abort them all.
    """
    # The CPU backend's own collectives work within one process only. Other backends ignore this.
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
    """Computes something on all devices: gloo connects at the first such computation, within 30 s.

    Here all processes are at the same point. Later one may be long in compiling, say, while the others wait.
    """
    import numpy as np
    from jax.experimental import multihost_utils

    distributed.exchange("connect", "")
    multihost_utils.process_allgather(np.zeros(1))  # One device a process.
    multihost_utils.sync_global_devices("connect")  # All devices.


def _wait_for(address: str) -> None:
    """Probes the coordinator: JAX itself would abort the process without a Python error.

    Raises:
      InputError: It cannot be reached.
      Stopped: A signal came meanwhile.
    """
    started = time.monotonic()
    while problem := peers.unreachable(address):
        if time.monotonic() - started > JOIN_TIMEOUT:
            raise InputError(
                f"no coordinator at {address}, where process 0 should be: tried for {JOIN_TIMEOUT} s, {problem}"
            )
        stopping.check()
        time.sleep(0.5)


def _use_cores() -> None:
    """Makes a CPU device of each core that this process may use. It is not used where JAX finds an accelerator.

    Raises:
      InputError: JAX_NUM_CPU_DEVICES is no number of devices.
    """
    chosen = jax.config.values["jax_num_cpu_devices"]  # JAX_NUM_CPU_DEVICES sets this too.
    if chosen != -1 and chosen < 1:
        raise InputError(f"JAX_NUM_CPU_DEVICES is {chosen}; it must be at least 1")
    if chosen != -1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(
        RuntimeError
    ):  # In a program that has used JAX, devices are as they are.
        jax.config.update("jax_num_cpu_devices", cores())


def _check_platforms() -> None:
    """Has JAX look for its devices; says in one line what is wrong if it finds none.

    Raises:
      InputError: JAX_PLATFORMS names what is not here.
      RunError: Devices that cannot be used, such as those that another process holds.
    """
    try:
        jax.local_devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # The latter for a plug-in that is not installed.
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

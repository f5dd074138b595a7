"""Processes of a cluster join with our time-outs, and one that fails does not leave the others waiting."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import pytest

from diffusion_jax import distributed
from diffusion_jax.errors import RunError

VARIABLES = (distributed.ADDRESS, distributed.COUNT, distributed.INDEX)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Records the calls of JAX's initialize instead of making them."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **named: calls.append((args, named))
    )
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in (*VARIABLES, "DIFFUSION_JAX_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_pod_and_named_processes_join_with_the_same_time_outs(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch
):
    distributed.initialize()
    assert not joined, "one process by itself joins nothing"
    monkeypatch.setenv("DIFFUSION_JAX_DISTRIBUTED", "1")
    distributed.initialize()
    for name, value in zip(VARIABLES, ("localhost:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.initialize()
    time_outs = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 60}
    assert joined == [((None,) * 3, time_outs), (("localhost:1", 2, 0), time_outs)]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_what_jax_refuses_is_one_line(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    def refuse(*_: Any, **__: Any) -> None:
        raise kind("no coordinator\nmany\nlines")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setenv("DIFFUSION_JAX_DISTRIBUTED", "1")
    with pytest.raises(RunError) as error:
        distributed.initialize()
    assert str(error.value) == "cannot join the other processes: no coordinator"


def test_a_process_by_itself_leaves_in_the_ordinary_way():
    distributed.leave(3)


def in_two_processes(script: str) -> tuple[list[subprocess.Popen[str]], list[str], float]:
    """Runs a script in two tasks of a simulated Slurm job; returns them, their stderr and the time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = (
        "import sys, time, jax\nfrom diffusion_jax import distributed\ndistributed.initialize()\n"
    )
    head += "index = jax.process_index()\n"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in VARIABLES},
        "JAX_PLATFORMS": "cpu",
        "DIFFUSION_JAX_DISTRIBUTED": "1",
        "JAX_COORDINATOR_PORT": str(port),
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", head + textwrap.dedent(script)],
            env={**environment, "SLURM_PROCID": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    started = time.monotonic()
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return processes, errors, time.monotonic() - started


def test_processes_that_leave_alike_keep_their_own_status():
    processes, errors, _ = in_two_processes(
        """
        time.sleep(index)
        distributed.leave(2)
        sys.exit(2)
        """
    )
    assert [process.returncode for process in processes] == [2, 2], errors


@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_process_leaves_the_other_fails_soon(failing: int):
    processes, errors, seconds = in_two_processes(
        f"""
        distributed.LEAVE_TIMEOUT = 1
        distributed.any_process(False)
        if index == {failing}:
            print("error: mine", file=sys.stderr, end="")
            distributed.leave(3)
        try:
            distributed.any_process(False)
        except Exception:
            distributed.leave(4)
        """
    )
    assert processes[failing].returncode == 3 and "error: mine" in errors[failing]
    assert processes[1 - failing].returncode not in (0, 3), errors
    # JAX's own shutdown would wait for 5 minutes, and a lost heartbeat be noticed after one.
    assert seconds < 45

"""Processes of a cluster join with our time-outs, and one that fails does not leave the others waiting."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from tiny_run import Outcome, finish_all

from diffusion_jax.errors import RunError
from diffusion_jax.parallel import distributed

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


START = """
import os, jax
os.sched_getaffinity = lambda _: {1, 4, 6}
from diffusion_jax.parallel import distributed
"""


def test_the_command_makes_a_cpu_device_of_each_core_unless_the_user_says_how_many():
    forced = "--xla_force_host_platform_device_count=5"
    begin, show = "distributed.initialize()\n", "print(jax.device_count())\n"
    cases = [
        (begin + show, {}, "3"),
        (begin + show, {"XLA_FLAGS": forced}, "5"),
        (begin + show, {"JAX_NUM_CPU_DEVICES": "2"}, "2"),
        (show + begin + show, {}, "1\n1"),  # A program that has used JAX keeps its devices.
    ]
    theirs = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "DIFFUSION_JAX_DISTRIBUTED", *VARIABLES)
    environ = {name: value for name, value in os.environ.items() if name not in theirs}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + script],
            env=environ | {"JAX_PLATFORMS": "cpu"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script, variables, _ in cases
    ]
    outcomes = finish_all(processes)
    assert [o.out.strip() for o in outcomes] == [out for _, _, out in cases], outcomes


def start_two(script: str) -> "list[subprocess.Popen[str]]":
    """Starts a script in two tasks of a simulated Slurm job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = "import sys, time, jax\nfrom diffusion_jax.parallel import distributed\ndistributed.initialize()\n"
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
    return [
        subprocess.Popen(
            [sys.executable, "-c", head + textwrap.dedent(script)],
            env={**environment, "SLURM_PROCID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def in_two_processes(script: str) -> tuple[list[Outcome], float]:
    """Runs a script in two tasks of a simulated Slurm job; returns their outcomes and the time."""
    started = time.monotonic()
    outcomes = finish_all(start_two(script))
    return outcomes, time.monotonic() - started


LATE = """
if index == 1:
    time.sleep(35)  # The connections of gloo itself give up after 30 s.
print(distributed.any_process(index == 1))
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.NamedSharding(mesh, jax.P("data"))
local = jax.numpy.full((1,), index + 1.0)
print(float(jax.jit(jax.numpy.sum)(jax.make_array_from_process_local_data(sharding, local))))
"""


@pytest.fixture(scope="module", autouse=True)
def late() -> "Iterator[list[subprocess.Popen[str]]]":
    """Two processes of which one comes late: they are started first and waited for last."""
    processes = start_two(LATE)
    yield processes
    for process in processes:
        process.kill()


def test_processes_that_leave_alike_keep_their_own_status():
    outcomes, _ = in_two_processes(
        """
        time.sleep(index)
        distributed.leave(2)
        sys.exit(2)
        """
    )
    assert [outcome.status for outcome in outcomes] == [2, 2], outcomes


@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_process_leaves_the_other_fails_soon(failing: int):
    outcomes, seconds = in_two_processes(
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
    assert outcomes[failing].status == 3 and "error: mine" in outcomes[failing].err, outcomes
    assert outcomes[1 - failing].status not in (0, 3), outcomes
    # JAX's own shutdown would wait for 5 minutes.
    assert seconds < 240, outcomes


def test_process_0_decides_and_tells_the_others():
    outcomes, _ = in_two_processes(
        """
        from diffusion_jax.errors import InputError
        def decide():
            time.sleep(1)
            return [index, "decided"]
        def refuse():
            raise InputError("not this one")
        print(distributed.first_decides("one", decide), distributed.first_decides("one", decide))
        print(distributed.all_do("all", lambda: index))
        for action in (
            lambda: distributed.first_decides("two", refuse),
            lambda: distributed.all_do("three", refuse if index == 1 else int),
        ):
            try:
                action()
            except InputError as error:
                print(error)
        """
    )
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    for index, outcome in enumerate(outcomes):
        lines = [line for line in outcome.out.splitlines() if "Gloo" not in line]
        assert lines == [
            "[0, 'decided'] [0, 'decided']",
            str(index),
            "process 0: not this one" if index else "not this one",
            "not this one" if index else "process 1: not this one",
        ]


def test_a_process_that_comes_late_to_the_first_computation_is_waited_for(
    late: "list[subprocess.Popen[str]]",
):
    outcomes = finish_all(late)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    for outcome in outcomes:
        assert "True" in outcome.out and "3.0" in outcome.out, outcomes

"""Processes of a cluster join with our time-outs, and one that fails does not leave the others waiting."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from slow import slow
from tiny_run import Outcome, finish_all

from diffusion_jax.errors import InputError, RunError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel import distributed, join, peers

VARIABLES = (join.ADDRESS, join.COUNT, join.INDEX)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Records the calls of JAX's initialize instead of making them."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **named: calls.append((args, named))
    )
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name in (*VARIABLES, join.SWITCH, *join._LAUNCHERS, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_pod_and_named_processes_join_with_the_same_time_outs(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch
):
    join.initialize()
    assert not joined, "one process by itself joins nothing"
    monkeypatch.setenv("DIFFUSION_JAX_DISTRIBUTED", "1")
    join.initialize()
    for name, value in zip(VARIABLES, ("localhost:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    join.initialize()
    time_outs = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 100}
    assert joined == [((None,) * 3, time_outs), (("localhost:1", 2, 0), time_outs)]


def test_a_signal_ends_the_wait_for_the_coordinator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(join, "JOIN_TIMEOUT", 2)
    monkeypatch.setattr(peers, "unreachable", lambda address: "connection refused")
    stopping.request("SIGTERM")
    try:
        with pytest.raises(stopping.Stopped):
            join.initialize(join.ProcessId("localhost:1", 2, 1))
    finally:
        stopping.forget()


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),  # An interactive job.
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "DIFFUSION_JAX_DISTRIBUTED": "0"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "DIFFUSION_JAX_DISTRIBUTED": "0"}, False),
    ],
)
def test_what_starts_several_processes_is_recognized(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], joins: bool
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    join.initialize()
    assert len(joined) == joins


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (("a", 2, 0), "address is 'a'; it must be host:port"),
        (("a:b", 2, 0), "address is 'a:b'"),
        (("a:1", 2, 2), "this process is number 2 of 2; numbers go from 0 to 1"),
        (("a:1", 2, -1), "number -1 of 2"),
    ],
)
def test_a_place_that_cannot_be_is_refused(joined: list[Any], place: tuple, problem: str):
    with pytest.raises(InputError, match=problem):
        join.initialize(join.ProcessId(*place))
    assert not joined


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_what_jax_refuses_is_one_line(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    def refuse(*_: Any, **__: Any) -> None:
        raise kind("no coordinator\nmany\nlines")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setenv("DIFFUSION_JAX_DISTRIBUTED", "1")
    with pytest.raises(RunError) as error:
        join.initialize()
    assert str(error.value) == "cannot join the other processes: no coordinator"


def test_a_process_by_itself_leaves_in_the_ordinary_way():
    peers.fail(3, "mine")
    peers.finish()
    peers.name_the_missing()


START = """
import os, jax
os.sched_getaffinity = lambda _: {1, 4, 6}
from diffusion_jax.parallel import join
"""


@pytest.mark.slow
def test_the_command_makes_a_cpu_device_of_each_core_unless_the_user_says_how_many():
    forced = "--xla_force_host_platform_device_count=5"
    begin, show = "join.initialize()\n", "print(jax.device_count())\n"
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
    head = "import os, signal, sys, time, jax\n"
    head += "from diffusion_jax.parallel import distributed, join, peers\njoin.initialize()\n"
    head += "from jax.experimental.multihost_utils import process_allgather\n"
    head += "index = jax.process_index()\n"
    head += "gather = lambda x: process_allgather(jax.numpy.float32(x)).tolist()\n"
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
print(gather(index + 0.5))
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


@pytest.mark.slow
def test_processes_that_leave_alike_keep_their_own_status():
    outcomes, _ = in_two_processes(
        """
        time.sleep(index)
        peers.fail(2, "alike")
        sys.exit(2)
        """
    )
    assert [outcome.status for outcome in outcomes] == [2, 2], outcomes


@pytest.mark.parametrize("failing", [1, slow(0)])
def test_when_one_process_fails_the_other_ends_soon_and_says_which_and_why(failing: int):
    outcomes, seconds = in_two_processes(
        f"""
        peers.LEAVE_TIMEOUT, peers.INTERVAL = 3, 0.2
        gather(0)
        if index == {failing}:
            print("error: mine", file=sys.stderr)
            peers.fail(3, "the disk is full")
            sys.exit(3)
        time.sleep(200)
        """
    )
    failed, other = outcomes[failing], outcomes[1 - failing]
    assert failed.status == 3 and "error: mine" in failed.err, outcomes
    assert other.status == 1 and f"error: process {failing} (" in other.err, outcomes
    assert "has stopped: the disk is full; run the same command again" in other.err
    assert seconds < 60, outcomes


@pytest.mark.slow
def test_a_failed_process_that_jax_aborts_keeps_its_own_status():
    """As it does when process 0 ends first, and the coordination service with it."""
    outcomes, _ = in_two_processes(
        """
        peers.LEAVE_TIMEOUT, peers.INTERVAL = 3, 0.2
        gather(0)
        if index == 1:
            peers._watch.end("the disk is full", 3)
            os.abort()
        time.sleep(200)
        """
    )
    assert [outcome.status for outcome in outcomes] == [1, 3], outcomes


@pytest.mark.parametrize("doing", ["gather(1)", slow("time.sleep(200)")])
@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_process_dies_the_other_ends_soon_and_names_it(dead: int, doing: str):
    outcomes, seconds = in_two_processes(
        f"""
        peers.SILENCE = 4
        gather(0)
        if index == {dead}:
            print(os.getpid(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            {doing}
        except Exception:
            peers.name_the_missing()
        """
    )
    died, other = outcomes[dead], outcomes[1 - dead]
    pid = died.out.split()[-1]
    assert died.status == -signal.SIGKILL and other.status == 1, outcomes
    assert (
        f"error: process {dead} (" in other.err
        and f", pid {pid}) is gone" in other.err
        or (f", pid {pid}) for " in other.err and "it died or hangs" in other.err)
    ), outcomes
    assert seconds < 60, outcomes


def test_a_sign_of_life_that_is_under_way_does_not_undo_that_of_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(peers, "_on_abort", lambda _: None)
    said = []
    watch = peers._Watch(["process 0"])
    ending = threading.Thread(target=watch.end, args=("",))

    class Client:
        def key_value_set(self, _: str, value: str, **__: bool) -> None:
            if threading.current_thread() is not ending:
                ending.start()
                ending.join(0.5)  # It is on its way to the service when the process ends.
            said.append(json.loads(value)["ended"])

    monkeypatch.setattr(distributed, "client", Client)
    watch._tell()
    ending.join()
    assert said == [None, ""]


def test_one_that_failed_because_another_is_gone_names_it(monkeypatch: pytest.MonkeyPatch):
    """As where a checkpoint cannot be saved: its own error says nothing of the other."""
    monkeypatch.setattr(peers, "_on_abort", lambda _: None)
    monkeypatch.setattr(peers, "INTERVAL", 0.1)
    watch = peers._Watch(["me", "process 1 (a)", "process 2 (b)", "process 3 (c)"])

    class Client:
        def key_value_dir_get(self, _: str) -> list[tuple[str, str]]:
            said = {1: {"count": 5, "ended": None}, 2: {"count": 9, "ended": None}}
            ended = {"count": 7, "ended": "the disk is full"}
            return [(f"alive/{i}", json.dumps(what)) for i, what in {**said, 3: ended}.items()]

    monkeypatch.setattr(distributed, "client", Client)
    assert watch.silent() == []  # All have just been heard.
    time.sleep(0.3)
    watch._seen[2] = "", 0.0  # From here on only process 2 is heard anew.
    assert watch.silent() == ["process 1 (a)"]


def test_process_0_decides_and_tells_the_others():
    outcomes, _ = in_two_processes(
        """
        from diffusion_jax.errors import InputError
        def decide():
            time.sleep(1)
            return [index, "decided"]
        def refuse():
            raise InputError("not this one")
        print(distributed.broadcast_from_first("one", decide), distributed.broadcast_from_first("one", decide))
        print(distributed.run_on_all("all", lambda: index))
        import numpy as np
        tree = {"bias": np.float32([-0.0, index, np.nan]), "count": np.int32(7 + index)}
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        got = distributed.arrays_of_first("arrays", lambda: tree, shapes)
        print(got["bias"], np.signbit(got["bias"][0]), got["bias"].dtype, got["count"].shape, got["count"])
        print(distributed.run_on_first("four", lambda: "mine"))
        for action in (
            lambda: distributed.broadcast_from_first("two", refuse),
            lambda: distributed.run_on_all("three", refuse if index == 1 else int),
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
            "[-0.  0. nan] True float32 () 7",
            "None" if index else "mine",
            "process 0: not this one" if index else "not this one",
            "not this one" if index else "process 1: not this one",
        ]


def test_long_work_of_process_0_is_waited_for_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
):
    now, hours = [0.0], 3600.0

    class Client:
        def key_value_set(self, *_: str) -> None:
            pass

        def blocking_key_value_get(self, *_: Any) -> str:
            if now[0] > 50 * hours:
                return "={}"
            now[0] += hours
            raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed, "client", Client)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert distributed.run_on_first("work", lambda: pytest.fail("done by another")) is None
    now[0] = 0.0
    assert distributed.broadcast_from_first("decision", int, timeout=math.inf) == {}
    now[0] = 0.0
    with pytest.raises(RuntimeError, match="DEADLINE"):
        distributed.exchange("short", "")


def test_a_signal_ends_a_process_that_waits_for_another():
    outcomes, seconds = in_two_processes(
        """
        if index == 1:
            time.sleep(20)
            sys.exit(0)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(7))
        signal.alarm(1)
        distributed.exchange("what never comes", "")
        """
    )
    assert outcomes[0].status == 7, outcomes


@pytest.mark.slow
def test_a_process_that_comes_late_to_the_first_computation_is_waited_for(
    late: "list[subprocess.Popen[str]]",
):
    outcomes = finish_all(late)
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    for outcome in outcomes:
        assert "[0.5, 1.5]" in outcome.out and "3.0" in outcome.out, outcomes

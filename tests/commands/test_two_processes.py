"""Two real processes train one run: same losses as one process, one checkpoint, one way to stop."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import (
    checkpoint_steps,
    digits_in,
    environment,
    finish_all,
    results,
    rows,
    run,
    start,
    write_config,
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with digits_in(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


def pair(*flags: str, num_steps: int) -> list:
    """Starts the command in two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    flags = (*flags, "--config.mesh.data=-1", f"--config.train.num_steps={num_steps}")
    return [start(flags, environment(2, **joined, JAX_PROCESS_ID=str(i))) for i in range(2)]


def test_two_processes_train_like_one_save_once_and_one_goes_on_alone(tmp_path: Path) -> None:
    tiny, workdir, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    flags = (f"--config={tiny}", f"--workdir={workdir}")
    processes = pair(*flags, num_steps=6)
    outcome = run(f"--config={tiny}", f"--workdir={alone}", "--config.train.num_steps=9")
    assert outcome.status == 0
    outcomes = finish_all(processes)
    assert [o.status for o in outcomes] == [0, 0], outcomes
    assert "4 device(s)" in outcomes[0].err and outcomes[1].err == ""
    assert results(workdir, "train")["provenance"]["processes"] == 2
    assert checkpoint_steps(workdir) == [4, 6]
    outcome = run(*flags, "--config.train.num_steps=9")
    assert outcome.status == 0 and "resuming at step 6" in outcome.err
    assert [row["step"] for row in rows(workdir)] == [3, 6, 9]
    for row, expected in zip(rows(workdir), rows(alone), strict=True):
        # Sums over four devices instead of one: float32 rounding.
        for name in ("loss", "grad_norm", "param_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5)


def test_sigterm_to_one_process_stops_both_after_a_checkpoint(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    fields = ("--config.train.log_every=20", "--config.train.checkpoint_every=1000000")
    flags = (f"--config={write_config(tmp_path)}", f"--workdir={workdir}", *fields)
    processes = pair(*flags, num_steps=1_000_000)
    try:
        deadline = time.monotonic() + 600
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            if time.monotonic() > deadline or processes[0].poll() is not None:
                break  # Below it fails, with the output of both.
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        outcomes = finish_all(processes)
    finally:
        for process in processes:
            process.kill()
    assert [o.status for o in outcomes] == [75, 75], outcomes
    (step,) = checkpoint_steps(workdir)
    assert f"saved step {step}" in outcomes[0].err

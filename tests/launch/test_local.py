"""The launcher of one machine's processes: with a simulated Python, and with two real ones of which one is killed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import checkpoint_steps, digits_in, environment, rows, write_config

SCRIPT = Path(__file__).parents[2] / "launch" / "local.sh"

# Records how it was started, then does what its plan says for this round: exit with a status, wait, or hang.
PYTHON = """\
[[ $1 != -c ]] || { echo 4321; exit; }
number=$JAX_PROCESS_ID
printf '%s\\n' "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_NUM_CPU_DEVICES ${CUDA_VISIBLE_DEVICES-} $*" \
    >> "started-$number"
round=$(wc -l < "started-$number")
echo "out of $number"
echo "error of $number" >&2
plan=plan-$number
what=$(sed -n "${round}p" "$plan")
if [[ $what == wait ]]; then
  trap 'exit 75' TERM INT
  touch "waits-$number"
  while true; do sleep 0.02; done
elif [[ $what == hang ]]; then
  trap '' TERM INT
  touch "waits-$number"
  while true; do sleep 0.02; done
fi
exit "$what"
"""

# Before a command: it heeds signals, also where these tests were started to ignore them, as by `nohup`. A shell
# could not catch them then.
RESET = "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2)]; "
RESET += "os.execv(sys.argv[1], sys.argv[1:])"
HEEDING = (sys.executable, "-I", "-S", "-c", RESET)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


def prepare(top: Path, *plans: str) -> dict[str, str]:
    """Writes what each process does, one word a round; returns the environment of the launcher."""
    for i, plan in enumerate(plans):
        (top / f"plan-{i}").write_text("\n".join(plan.split()) + "\n")
    executable(top / "bin" / "python", PYTHON)
    executable(top / "bin" / "nproc", "echo 6\n")
    executable(top / "bin" / "nvidia-smi", "exit 9\n")
    return {"PATH": f"{top / 'bin'}:/usr/bin:/bin"}


def launch(top: Path, variables: dict[str, str], *arguments: str):
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env=variables,
        cwd=top,
        capture_output=True,
        text=True,
        timeout=60,
    )


def starts(top: Path, number: int = 0) -> list[str]:
    record = top / f"started-{number}"
    return record.read_text().splitlines() if record.exists() else []


def test_each_process_gets_its_place_its_share_of_the_cores_and_the_arguments(tmp_path: Path):
    result = launch(tmp_path, prepare(tmp_path, "0", "0"), "2", "--config=a b.py", "--mode=train")
    assert result.returncode == 0, result.stderr
    for i in range(2):
        (line,) = starts(tmp_path, i)
        assert line == "127.0.0.1:4321 2 3  -m diffusion_jax.main --config=a b.py --mode=train"
        assert f"[{i}] out of {i}\n" in result.stdout
        assert f"[{i}] error of {i}\n" in result.stderr


@pytest.mark.parametrize(
    ("first", "second", "options", "expected", "rounds"),
    [
        pytest.param("1 75 0", "1 75 0", (), 0, 3, id="failed, then stopped"),
        pytest.param("0 0", "1 0", (), 0, 2, id="one failed"),
        pytest.param("2 0", "2 0", (), 2, 1, id="wrong input"),
        pytest.param("1 1 1 1 1", "1 1 1 1 1", (), 1, 4, id="fails for ever"),
        pytest.param("1 1 1", "1 1 1", ("--max-restarts=0",), 1, 1, id="not to be restarted"),
        pytest.param("hang 0", "1 0", ("--grace", "0"), 0, 2, id="the other hangs"),
    ],
)
def test_starts_all_again_after_any_status_but_0_and_2(
    tmp_path: Path, first: str, second: str, options: tuple, expected: int, rounds: int
):
    result = launch(tmp_path, prepare(tmp_path, first, second), *options, "2")
    assert result.returncode == expected, result.stderr
    assert [len(starts(tmp_path, i)) for i in range(2)] == [rounds, rounds]
    assert result.stderr.count("; restart ") == rounds - 1
    assert ("; killing" in result.stderr) == ("hang" in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_processes_and_starts_none_again(tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(
        [*HEEDING, "/bin/bash", str(SCRIPT), "--log-dir=logs", "2"],
        env=prepare(tmp_path, "wait", "wait"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"waits-{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == 75
    assert [len(starts(tmp_path, i)) for i in range(2)] == [1, 1]
    log = tmp_path / "logs" / "process-1.log"
    assert log.read_text() == "out of 1\nerror of 1\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signal_is_waited_out_also_when_the_terminal_is_gone(
    tmp_path: Path, number: signal.Signals
):
    """A terminal's signal goes to all that run in its foreground, and then nobody may read what is printed."""
    variables = prepare(tmp_path, "wait", "wait")
    says = "sleep 0.5; echo saving || exit 1; sleep 0.5; echo saved || exit 1; touch saved-$number; exit 75"
    executable(tmp_path / "bin" / "python", PYTHON.replace("exit 75", says))
    process = subprocess.Popen(
        [*HEEDING, "/bin/bash", str(SCRIPT), "2"],
        env=variables,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"waits-{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    os.killpg(process.pid, number)
    assert process.wait(30) == 75
    assert all((tmp_path / f"saved-{i}").exists() for i in range(2))


def test_gpus_are_divided_evenly_or_it_is_said(tmp_path: Path):
    variables = prepare(tmp_path, *["0 0 0"] * 3)
    executable(tmp_path / "bin" / "nvidia-smi", "printf '0\\n1\\n2\\n3\\n'\n")
    assert launch(tmp_path, variables, "2").returncode == 0
    assert [starts(tmp_path, i)[0].split()[3] for i in range(2)] == ["0,1", "2,3"]
    result = launch(tmp_path, variables, "3")
    assert result.returncode == 2
    assert "3 processes cannot divide 4 GPUs evenly" in result.stderr
    assert launch(tmp_path, {**variables, "CUDA_VISIBLE_DEVICES": "7,5,6"}, "3").returncode == 0
    assert [starts(tmp_path, i)[-1].split()[3] for i in range(3)] == ["7", "5", "6"]
    assert launch(tmp_path, {**variables, "JAX_PLATFORMS": "cpu"}, "3").returncode == 0
    assert starts(tmp_path, 2)[-1].split()[3] == "-m"


def test_dry_run_prints_a_command_a_process_and_starts_none(tmp_path: Path):
    result = launch(tmp_path, prepare(tmp_path), "--dry-run", "2", "--config=a b.py")
    assert result.returncode == 0 and not starts(tmp_path)
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    for i, line in enumerate(lines):
        assert line[0] == "env" and f"JAX_PROCESS_ID={i}" in line
        assert line[-4:] == ["python", "-m", "diffusion_jax.main", "--config=a b.py"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the number of processes is missing"),
        (["--config=a.py"], "unknown option '--config=a.py'"),
        (["x"], "the number of processes is 'x'"),
        (["2", "--dry-run", "--config=a.py"], "'--dry-run' comes before N"),
        (["2", "--config=a.py", "--max-restarts=0"], "'--max-restarts=0' comes before N"),
        (["2", "--grace", "5"], "'--grace' comes before N"),
        (["2", "--log-dir=logs"], "'--log-dir=logs' comes before N"),
        (["0"], "the number of processes is '0'"),
        (["--grace"], "--grace needs a value"),
        (["--grace=", "2"], "--grace is empty"),
        (["--max-restarts=-1", "2"], "--max-restarts '-1' is not a whole number"),
        (["--max-restarts=08", "2"], "--max-restarts '08' is not a whole number"),
        (["--grace=1m", "2"], "--grace '1m' is not a whole number"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], message: str
):
    result = launch(tmp_path, prepare(tmp_path), *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_help_shows_every_option(tmp_path: Path):
    result = launch(tmp_path, prepare(tmp_path), "--help")
    assert result.returncode == 0
    for option in ("max-restarts", "grace", "log-dir", "dry-run", "help"):
        assert f"  --{option} " in result.stdout


@pytest.mark.slow
def test_a_killed_process_is_started_again_with_its_peer_and_the_training_is_finished(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    workdir, steps = tmp_path / "run", 20
    flags = [f"--config={write_config(tmp_path)}", f"--workdir={workdir}"]
    flags += [f"--config.train.num_steps={steps}", "--config.train.checkpoint_every=10"]
    flags += ["--config.mesh.data=-1", "--config.train.log_every=10"]
    with digits_in(tmp_path_factory.mktemp("cache")):
        process = subprocess.Popen(
            ["/bin/bash", str(SCRIPT), "--grace=10", "2", *flags],
            env=environment(PYTHON=sys.executable),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said: list[str] = []
        try:
            while not (workdir / "checkpoints" / "10").exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            while "process 0 has pid" not in (said or [""])[-1]:
                said.append(process.stderr.readline())
            victim = re.search(r"pid (\d+)", said[-1])
            assert victim is not None
            os.kill(int(victim[1]), signal.SIGKILL)
            rest = process.communicate(timeout=120)[1]
        finally:
            process.terminate()
    assert process.returncode == 0, rest
    assert "local.sh: status 137; restart 1 of at most 3" in rest
    assert "resuming at step" in rest
    assert checkpoint_steps(workdir)[-1] == steps
    assert rows(workdir)[-1]["step"] == steps

"""The Slurm launcher, against a simulated srun, squeue and scontrol."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm_gpu.sbatch"

# Records its arguments and the GPUs that JAX is to take, and ends with the status that the test wants.
SRUN = """\
printf '%s\\n' "${JAX_LOCAL_DEVICE_IDS-} $*" >> srun
if [[ $STATUS == wait ]]; then
  trap 'sleep 0.3; touch saved; exit 75' TERM
  touch waits
  while true; do sleep 0.02; done
fi
exit "$STATUS"
"""


def prepare(top: Path, status: int | str, state: str = "RUNNING", **more: str) -> dict[str, str]:
    programs = {"srun": SRUN, "squeue": 'echo "$STATE"', "scontrol": "echo $* >> scontrol"}
    (top / "bin").mkdir()
    for name, text in programs.items():
        path = top / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    variables = {"PATH": f"{top / 'bin'}:/usr/bin:/bin", "STATUS": str(status), "STATE": state}
    return {**variables, "SLURM_JOB_ID": "77", **more}


def launch(top: Path, variables: dict[str, str], *arguments: str):
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env=variables,
        cwd=top,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [
        pytest.param(0, "RUNNING", "0", False, id="done"),
        pytest.param(2, "RUNNING", "0", False, id="wrong input"),
        pytest.param(75, "RUNNING", "0", True, id="stopped"),
        pytest.param(1, "RUNNING", "4", True, id="a peer died"),
        pytest.param(75, "COMPLETING", "0", False, id="canceled"),
        pytest.param(75, "RUNNING", "5", False, id="often enough"),
    ],
)
def test_goes_back_into_the_queue_unless_done_wrong_canceled_or_often_enough(
    tmp_path: Path, status: int, state: str, restarts: str, requeued: bool
):
    variables = prepare(tmp_path, status, state, SLURM_RESTART_COUNT=restarts)
    result = launch(tmp_path, variables, "--max-requeues=5", "--config=a b.py")
    assert result.returncode == status, result.stderr
    command = (tmp_path / "srun").read_text()
    assert command == " --kill-on-bad-exit=0 python -m diffusion_jax.main --config=a b.py\n"
    record = tmp_path / "scontrol"
    assert (record.read_text() if record.exists() else "") == "requeue 77\n" * requeued


def test_the_notice_before_the_time_limit_is_passed_on_and_the_checkpoint_waited_for(
    tmp_path: Path,
):
    process = subprocess.Popen(
        ["/bin/bash", str(SCRIPT), "--config=a.py"],
        env=prepare(tmp_path, "wait"),
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "waits").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_one_process_a_node_gets_all_gpus_of_the_node(tmp_path: Path):
    more = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}
    assert launch(tmp_path, prepare(tmp_path, 0, **more), "--config=a.py").returncode == 0
    assert (tmp_path / "srun").read_text().startswith("0,1,2,3 ")


def test_dry_run_prints_the_command_and_runs_nothing(tmp_path: Path):
    result = launch(tmp_path, prepare(tmp_path, 0), "--dry-run", "--config=a b.py")
    assert result.returncode == 0 and not (tmp_path / "srun").exists()
    assert shlex.split(result.stdout.splitlines()[0])[-2:] == [
        "diffusion_jax.main",
        "--config=a b.py",
    ]


@pytest.mark.parametrize(
    ("arguments", "job", "message"),
    [
        (["--config=a.py"], "", "this is not a Slurm job"),
        ([], "77", "the arguments of the command are missing"),
        (["--max-requeues=x", "--config=a.py"], "77", "--max-requeues 'x' is not a whole number"),
        (["--max-requeues=08", "--config=a.py"], "77", "--max-requeues '08' is not a whole number"),
        (["--max-requeues"], "77", "--max-requeues needs a value"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], job: str, message: str
):
    result = launch(tmp_path, prepare(tmp_path, 0, SLURM_JOB_ID=job), *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "srun").exists()


def test_help_shows_every_option(tmp_path: Path):
    result = launch(tmp_path, prepare(tmp_path, 0), "--help")
    assert result.returncode == 0
    for option in ("max-requeues", "dry-run", "help"):
        assert f"  --{option} " in result.stdout

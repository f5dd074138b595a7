"""The TPU pod launcher, against a simulated gcloud whose one worker is a folder of this machine."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
TARGET = ["--name=pod", "--zone=z1"]
RUN = ["--workdir=/mnt/shared/run", "--config=configs/digits.py"]

# Records its arguments, then does to the worker's home folder what gcloud would do to a worker.
GCLOUD = """\
import json, os, shutil, subprocess, sys, time
argv, home = sys.argv[1:], os.environ["WORKER_HOME"]
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(argv) + "\\n")
if argv[2] == "queued-resources":
    if argv[3] == "create":
        open(home + "/states", "w").write("CREATING READY READY READY")
elif argv[3] == "scp":
    shutil.copy(argv[4], home)
elif argv[3] == "describe":
    states = open(home + "/states").read().split() or ["NOT_FOUND"]
    open(home + "/states", "w").write(" ".join(states[1:]))
    if states[0] in ("NOT_FOUND", "UNAVAILABLE"):
        sys.exit(f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) {states[0]}")
    print(states[0])
else:
    command = next(a.removeprefix("--command=") for a in argv if a.startswith("--command="))
    environment = {"HOME": home, "PATH": home + "/bin:/usr/bin:/bin"}
    process = subprocess.Popen(["bash", "-c", command], env=environment)
    if "DISTRIBUTED=1" in command and os.path.exists(home + "/disconnect"):
        os.remove(home + "/disconnect")
        while not os.path.exists(home + "/trains"):
            time.sleep(0.05)
        sys.exit(255)  # The worker's process goes on.
    sys.exit(process.wait())
"""
UV = """\
[[ -f setup.cfg && ! -e $HOME/uv_fails ]] || exit 9
if [[ $1 == venv ]]; then mkdir -p .venv/bin && cp "$HOME/python" .venv/bin/python; fi
"""
# Records its arguments and exits with the next of the prepared statuses.
PYTHON = """\
printf '%s\\n' "$DIFFUSION_JAX_DISTRIBUTED" >> "$HOME/distributed"
for argument in "$@"; do printf '%s\\0' "$argument"; done >> "$HOME/arguments"
printf '\\001' >> "$HOME/arguments"
status=$(head -n 1 "$HOME/statuses")
sed -i 1d "$HOME/statuses"
if [[ $status == trains ]]; then
  trap 'echo stopped > "$HOME/stopped"; exit 75' TERM
  touch "$HOME/trains"
  while true; do /bin/sleep 0.05; done
fi
exit "$status"
"""


def write_script(path: Path, text: str, interpreter: str = "/bin/bash") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}")
    path.chmod(0o755)


def git(repository: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(repository), *identity, *arguments], check=True)


@dataclass
class Pod:
    """A checkout with one commit, a simulated gcloud and a worker."""

    top: Path
    path: str = field(default="/usr/bin:/bin")

    def __post_init__(self) -> None:
        self.checkout, self.worker = self.top / "check out", self.top / "worker"
        for folder in (self.checkout / "configs", self.checkout / "launch", self.top / "tmp"):
            folder.mkdir(parents=True)
        for script in (SCRIPT, SCRIPT.with_name("slices.sh")):
            shutil.copy(script, self.checkout / "launch")
        (self.checkout / "configs" / "digits.py").write_text("")
        (self.checkout / "setup.cfg").write_text("committed")
        git(self.checkout, "init", "--quiet")
        git(self.checkout, "add", "--all")
        git(self.checkout, "commit", "--quiet", "--message=Start")
        write_script(self.top / "bin" / "gcloud", GCLOUD, sys.executable)
        # The waits for a slice are so recorded, and take no time.
        write_script(self.top / "bin" / "sleep", 'echo "$1" >> "$WORKER_HOME/sleeps"\n')
        write_script(self.worker / "bin" / "uv", UV)
        write_script(self.worker / "python", PYTHON)
        self.path = f"{self.top / 'bin'}:{self.path}"

    def launch(
        self,
        *arguments: str,
        statuses: tuple[int | str, ...] = (0,),
        states: tuple[str, ...] = ("READY",) * 9,
    ):
        """Runs the script; `states` are the answers to its questions for the slice's state."""
        (self.worker / "states").write_text(" ".join(states))
        (self.worker / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        environment = {
            "PATH": self.path,
            "TMPDIR": str(self.top / "tmp"),
            "RECORD": str(self.top / "record"),
            "WORKER_HOME": str(self.worker),
        }
        script = self.checkout / "launch" / SCRIPT.name
        return subprocess.run(
            ["/bin/bash", str(script), *arguments],
            env=environment,
            cwd=self.top,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def gcloud_calls(self) -> list[list[str]]:
        record = self.top / "record"
        return (
            [json.loads(line) for line in record.read_text().splitlines()]
            if record.exists()
            else []
        )

    def runs(self) -> list[list[str]]:
        """The arguments of each start of Python on the worker."""
        record = self.worker / "arguments"
        runs = record.read_text().split("\1")[:-1] if record.exists() else []
        return [run.split("\0")[:-1] for run in runs]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_installs_the_commit_and_runs_the_command_with_its_arguments_intact(pod: Pod):
    awkward = [
        "--a=two words",
        "it's",
        '"quoted"',
        "$HOME `id` ; & | *",
        "",
        "two\nlines",
        "\\",
        "ü",
    ]
    result = pod.launch(*TARGET, *RUN, "--project=p", "--", *awkward)
    assert result.returncode == 0, result.stderr
    expected = ["-m", "diffusion_jax.main", "--config=configs/digits.py"]
    assert pod.runs() == [[*expected, "--workdir=/mnt/shared/run", *awkward]]
    assert (pod.worker / "diffusion_jax_launch" / "setup.cfg").read_text() == "committed"
    for call in pod.gcloud_calls():
        assert call[:3] == ["compute", "tpus", "tpu-vm"]
        assert {"--zone=z1", "--project=p", "--worker=all"} <= set(call)
    assert (pod.worker / "distributed").read_text() == "1\n", (
        "the workers' processes would not join"
    )
    assert [call[3] for call in pod.gcloud_calls()] == ["scp", "ssh", "ssh"]
    assert not list((pod.top / "tmp").iterdir()), "temporary files were left"


@pytest.mark.parametrize(
    ("statuses", "max_restarts", "expected", "num_runs"),
    [
        ((75, 75, 0), 100, 0, 3),
        ((75, 75, 75), 1, 75, 2),
        ((75,), 0, 75, 1),
        ((1, 0), 100, 1, 1),
        ((75, 2, 0), 100, 2, 2),
    ],
)
def test_restarts_only_after_status_75_and_passes_the_last_status_on(
    pod: Pod, statuses: tuple[int, ...], max_restarts: int, expected: int, num_runs: int
):
    result = pod.launch(*TARGET, *RUN, f"--max-restarts={max_restarts}", statuses=statuses)
    assert (result.returncode, len(pod.runs())) == (expected, num_runs), result.stderr
    assert result.stderr.count("restart ") == num_runs - 1


@pytest.mark.parametrize(
    ("statuses", "states", "expected", "num_runs", "num_waits"),
    [
        pytest.param((255, 0), ("READY",), 0, 2, 1, id="connection lost"),
        pytest.param((255, 0), ("PREEMPTED", "CREATING", "READY"), 0, 2, 3, id="recreated"),
        pytest.param((134, 0), ("PREEMPTED", "READY"), 0, 2, 1, id="failed as a peer went"),
        pytest.param(
            (75, 0), ("REPAIRING", "REPAIRING", "READY"), 0, 2, 2, id="stopped, then gone"
        ),
        pytest.param((1, 0), ("READY",), 1, 1, 0, id="failed by itself"),
        pytest.param((255, 0), ("PREEMPTED",) * 9, 255, 1, 4, id="gone for good"),
    ],
)
def test_after_a_preemption_waits_for_the_slice_installs_again_and_runs(
    pod: Pod,
    statuses: tuple[int, ...],
    states: tuple[str, ...],
    expected: int,
    num_runs: int,
    num_waits: int,
):
    result = pod.launch(
        *TARGET, *RUN, "--project=p", "--ready-timeout=120", statuses=statuses, states=states
    )
    assert (result.returncode, len(pod.runs())) == (expected, num_runs), result.stderr
    calls = pod.gcloud_calls()
    assert [call[3] for call in calls].count("scp") == num_runs
    waits = pod.worker / "sleeps"
    assert (waits.read_text().split() if waits.exists() else []) == ["30"] * num_waits
    if expected == 255:
        assert "'pod' is not READY after 120 seconds" in result.stderr
    for call in calls:
        if call[3] == "describe":
            assert call[4:] == ["pod", "--format=value(state)", "--zone=z1", "--project=p"]


@pytest.mark.parametrize(
    ("accelerator", "cloud", "version"),
    [
        ("v4-16", "v4-16", "tpu-ubuntu2204-base"),
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v5p-16", "v2-alpha-tpuv5"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_creates_a_queued_resource_by_the_name_and_with_the_software_of_its_accelerator(
    pod: Pod, accelerator: str, cloud: str, version: str
):
    result = pod.launch("create", *TARGET, f"--accelerator={accelerator}", "--spot")
    assert result.returncode == 0, result.stderr
    (call,) = pod.gcloud_calls()
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "pod"]
    assert set(call[5:]) == {
        "--node-id=pod",
        f"--accelerator-type={cloud}",
        f"--runtime-version={version}",
        "--spot",
        "--zone=z1",
    }


def test_deletes_the_slice_with_its_queued_resource_and_passes_the_project_on(pod: Pod):
    assert pod.launch("delete", *TARGET, "--project=p").returncode == 0
    (call,) = pod.gcloud_calls()
    assert call[2:5] == ["queued-resources", "delete", "pod"]
    assert call[5:] == ["--force", "--quiet", "--zone=z1", "--project=p"]


def test_install_installs_and_starts_nothing(pod: Pod):
    assert pod.launch("install", *TARGET).returncode == 0
    assert (pod.worker / "diffusion_jax_launch" / "setup.cfg").exists() and not pod.runs()


@pytest.mark.parametrize(("more", "worker"), [([], "0"), (["--worker=all"], "all")])
def test_tail_follows_what_a_run_has_printed(pod: Pod, more: list[str], worker: str):
    (pod.worker / "bin").mkdir(exist_ok=True)
    write_script(pod.worker / "bin" / "tail", '/usr/bin/tail "${@/-F/-q}"\n')  # Which ends.
    (pod.worker / "python").write_text("#!/bin/bash\necho loss 0.5\necho oh >&2\n")
    run = pod.launch(*TARGET, *RUN)
    assert run.returncode == 0 and "loss 0.5\n" in run.stdout and "oh\n" in run.stderr
    result = pod.launch("tail", *TARGET, *more)
    assert sorted(result.stdout.splitlines()) == ["loss 0.5", "oh"], result.stderr
    assert f"--worker={worker}" in pod.gcloud_calls()[-1]


@pytest.mark.parametrize(
    ("statuses", "states", "creations", "num_runs"),
    [
        pytest.param((0,), ("READY",), 0, 1, id="still there"),
        pytest.param((0,), (), 1, 1, id="gone"),
        pytest.param((0,), ("PREEMPTED", "PREEMPTED"), 1, 1, id="preempted"),
        pytest.param((0,), ("CREATING", "CREATING", "READY"), 0, 1, id="on its way"),
        pytest.param((255, 0), ("READY", "PREEMPTED"), 1, 2, id="preempted later"),
        pytest.param((1, 0), ("READY",), 1, 2, id="gone later"),
        pytest.param((1,), ("READY", "READY"), 0, 1, id="failed by itself"),
        pytest.param((0,), ("UNAVAILABLE", "UNAVAILABLE", "READY"), 0, 1, id="cannot be asked"),
    ],
)
def test_resume_creates_a_slice_that_is_gone_anew_and_runs_there(
    pod: Pod, statuses: tuple[int, ...], states: tuple[str, ...], creations: int, num_runs: int
):
    arguments = [*TARGET, *RUN, "--accelerator=v6e-8", "--spot"]
    result = pod.launch("resume", *arguments, statuses=statuses, states=states)
    assert (result.returncode, len(pod.runs())) == (statuses[-1], num_runs), result.stderr
    calls = [call[3] for call in pod.gcloud_calls()]
    assert calls.count("create") == calls.count("delete") == creations


@pytest.mark.parametrize("command", ["create", "install", "resume", "tail", "delete"])
def test_a_dry_run_of_every_command_calls_nothing(pod: Pod, command: str):
    more = {"create": ["--accelerator=v6e-8"], "resume": [*RUN, "--accelerator=v6e-8"]}
    result = pod.launch(command, "--dry-run", *TARGET, *more.get(command, []))
    assert result.returncode == 0 and not pod.gcloud_calls(), result.stderr
    lines = result.stdout.splitlines()
    assert all(line.startswith(("gcloud ", "git ", "# ")) for line in lines if "gcloud" in line)
    assert any(line.startswith("gcloud compute tpus") for line in lines)


def test_what_still_runs_after_a_lost_connection_is_stopped_before_the_next_start(pod: Pod):
    (pod.worker / "disconnect").touch()
    result = pod.launch(*TARGET, *RUN, statuses=("trains", 0))
    assert (result.returncode, len(pod.runs())) == (0, 2), result.stderr
    assert (pod.worker / "stopped").exists()


def test_a_stale_process_number_stops_nothing(pod: Pod):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (pod.worker / "diffusion_jax_launch.pid").write_text(f"{bystander.pid}\n")
        assert pod.launch(*TARGET, *RUN).returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_does_not_train_when_the_installation_fails(pod: Pod):
    (pod.worker / "uv_fails").touch()
    assert pod.launch(*TARGET, *RUN).returncode == 9
    assert not pod.runs()


def test_sends_the_named_commit_and_says_that_uncommitted_changes_are_not_sent(pod: Pod):
    git(pod.checkout, "tag", "first")
    (pod.checkout / "setup.cfg").write_text("second commit")
    git(pod.checkout, "commit", "--quiet", "--all", "--message=Go on")
    (pod.checkout / "setup.cfg").write_text("uncommitted")
    sent = pod.worker / "diffusion_jax_launch" / "setup.cfg"
    result = pod.launch(*TARGET, *RUN)
    assert "uncommitted changes are not sent" in result.stderr
    assert sent.read_text() == "second commit"
    pod.launch(*TARGET, *RUN, "--ref=first")
    assert sent.read_text() == "committed"


def test_dry_run_prints_exactly_the_commands_of_a_real_run_and_runs_none(pod: Pod):
    arguments = [*TARGET, *RUN, "--", "--a=it's two words"]
    dry = pod.launch("--dry-run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert not pod.gcloud_calls() and not pod.runs()

    assert pod.launch(*arguments).returncode == 0
    lines = dry.stdout.splitlines()
    assert lines[0].startswith("git ")
    printed = []
    for line in lines[1:]:
        words = subprocess.check_output(["/bin/bash", "-c", f"printf '%s\\0' {line}"], text=True)
        printed.append(words.split("\0")[:-1])
    real = [["gcloud", *call] for call in pod.gcloud_calls()]
    printed[0][5] = real[0][5] = "ARCHIVE"  # Lies in another temporary folder in each run.
    assert printed == real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*RUN, "--zone=z1"], "--name is missing"),
        ([*RUN, "--name=pod"], "--zone is missing"),
        ([*TARGET, "--config=configs/digits.py"], "--workdir is missing"),
        ([*TARGET, "--workdir=/mnt/r"], "--config is missing"),
        ([*TARGET, *RUN, "--zone"], "--zone needs a value"),
        ([*TARGET, *RUN, "--zone", "--", "x"], "--zone needs a value"),
        ([*TARGET, *RUN, "--zone="], "--zone is empty"),
        ([*TARGET, *RUN, "--zones=z1"], "unknown argument '--zones=z1'"),
        ([*TARGET, *RUN, "--mode=sample"], "unknown argument '--mode=sample'"),
        ([*TARGET, *RUN, "--workdir=runs/x"], "--workdir 'runs/x' is neither gs://"),
        ([*TARGET, *RUN, "--workdir=s3://b/r"], "--workdir 's3://b/r' is neither gs://"),
        ([*TARGET, *RUN, "--config=configs/none.py"], "'configs/none.py' is not a file of commit"),
        ([*TARGET, *RUN, "--config=none"], "'configs/none.py' is not a file of commit"),
        ([*TARGET, *RUN, "--ref=nowhere"], "--ref 'nowhere' is not a commit"),
        ([*TARGET, *RUN, "--max-restarts=-1"], "'-1' is not a whole number"),
        ([*TARGET, *RUN, "--max-restarts=08"], "'08' is not a whole number"),
        (["destroy", *TARGET], "unknown command 'destroy'"),
        (["create", *TARGET], "--accelerator is missing"),
        (["create", *TARGET, "--accelerator=v3-8"], "--accelerator 'v3-8' is not a slice of v4,"),
        (["create", *TARGET, "--accelerator=v6e-"], "'v6e-' is not a slice of v6e; did you mean"),
        (["create", *TARGET, "--accelerator=v5e-15"], "did you mean v5e-16 (v5e:4x4)?"),
        (["create", *TARGET, "--accelerator=v4:2x2x3"], "did you mean v4-16 (v4:2x2x2)?"),
        (["create", *TARGET, "--spot=yes"], "--spot takes no value"),
        ([*TARGET, *RUN, "--spot"], "--spot is not an option of 'run', only of create, resume"),
        (["create", *TARGET, "--worker=1"], "not an option of 'create', only of tail; see --help"),
        (["tail", *TARGET, "--worker=x"], "--worker 'x' is neither a number nor 'all'"),
        (["delete", *TARGET, "--", "x"], "'delete' takes no arguments after --"),
        ([*TARGET, *RUN, "--ready-timeout=1h"], "--ready-timeout '1h' is not a whole number"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(pod: Pod, arguments: list[str], message: str):
    result = pod.launch(*arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not pod.gcloud_calls()


def test_missing_gcloud_is_named(pod: Pod):
    tools = pod.top / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "git"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    pod.path = str(tools)
    result = pod.launch(*TARGET, *RUN)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "gcloud is not installed" in result.stderr


def test_help_shows_every_option(pod: Pod):
    result = pod.launch("--help")
    assert result.returncode == 0
    for option in """name zone workdir config accelerator project spot runtime-version worker ref
        max-restarts ready-timeout dry-run help""".split():
        assert f"  --{option} " in result.stdout


@pytest.mark.skipif(
    shutil.which("shellcheck") is None,
    reason="needs shellcheck on the PATH, where the extra [test] puts it",
)
def test_shellcheck_finds_nothing():
    launchers = [str(path) for path in SCRIPT.parent.iterdir() if path.suffix != ".yaml"]
    scripts = [*launchers, str(SCRIPT.parents[1] / ".ci" / "run")]
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout

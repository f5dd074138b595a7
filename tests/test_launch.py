"""The TPU pod launcher, against a simulated gcloud whose one worker is a folder of this machine."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "tpu_pod.sh"
TARGET = ["--name=pod", "--zone=z1"]
RUN = ["--workdir=gs://bucket/run", "--config=configs/digits.py"]

# Records its arguments, then does to the worker's home folder what gcloud would do to a worker.
GCLOUD = """\
import json, os, shutil, subprocess, sys
argv, home = sys.argv[1:], os.environ["WORKER_HOME"]
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(argv) + "\\n")
if argv[3] == "scp":
    shutil.copy(argv[4], home)
else:
    command = next(a.removeprefix("--command=") for a in argv if a.startswith("--command="))
    environment = {"HOME": home, "PATH": home + "/bin:/usr/bin:/bin"}
    sys.exit(subprocess.run(["bash", "-c", command], env=environment).returncode)
"""
UV = """\
[[ -f setup.cfg && ! -e $HOME/uv_fails ]] || exit 9
if [[ $1 == venv ]]; then mkdir -p .venv/bin && cp "$HOME/python" .venv/bin/python; fi
"""
# Records its arguments and exits with the next of the prepared statuses.
PYTHON = """\
for argument in "$@"; do printf '%s\\0' "$argument"; done >> "$HOME/arguments"
printf '\\001' >> "$HOME/arguments"
status=$(head -n 1 "$HOME/statuses")
sed -i 1d "$HOME/statuses"
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
        shutil.copy(SCRIPT, self.checkout / "launch")
        (self.checkout / "configs" / "digits.py").write_text("")
        (self.checkout / "setup.cfg").write_text("committed")
        git(self.checkout, "init", "--quiet")
        git(self.checkout, "add", "--all")
        git(self.checkout, "commit", "--quiet", "--message=Start")
        write_script(self.top / "bin" / "gcloud", GCLOUD, sys.executable)
        write_script(self.worker / "bin" / "uv", UV)
        write_script(self.worker / "python", PYTHON)
        self.path = f"{self.top / 'bin'}:{self.path}"

    def launch(self, *arguments: str, statuses: tuple[int, ...] = (0,)):
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
    assert pod.runs() == [[*expected, "--workdir=gs://bucket/run", *awkward]]
    assert (pod.worker / "diffusion_jax_launch" / "setup.cfg").read_text() == "committed"
    for call in pod.gcloud_calls():
        assert call[:3] == ["compute", "tpus", "tpu-vm"]
        assert {"--zone=z1", "--project=p", "--worker=all"} <= set(call)
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
        ([*TARGET, "--workdir=gs://b/r"], "--config is missing"),
        ([*TARGET, *RUN, "--zone"], "--zone needs a value"),
        ([*TARGET, *RUN, "--zone", "--", "x"], "--zone needs a value"),
        ([*TARGET, *RUN, "--zone="], "--zone is empty"),
        ([*TARGET, *RUN, "--zones=z1"], "unknown argument '--zones=z1'"),
        ([*TARGET, *RUN, "--mode=sample"], "unknown argument '--mode=sample'"),
        ([*TARGET, *RUN, "--workdir=runs/x"], "--workdir 'runs/x' is not seen by all workers"),
        ([*TARGET, *RUN, "--config=configs/none.py"], "'configs/none.py' is not a file of commit"),
        ([*TARGET, *RUN, "--ref=nowhere"], "--ref 'nowhere' is not a commit"),
        ([*TARGET, *RUN, "--max-restarts=-1"], "'-1' is not a whole number"),
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
    for option in "name zone workdir config project ref max-restarts dry-run help".split():
        assert f"  --{option} " in result.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [str(SCRIPT), str(SCRIPT.parents[1] / ".ci" / "run")]
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout

"""The command starts again once, with huge pages, where they help; it stays as it is everywhere else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffusion_jax.commands import huge_pages

# Runs at the start of each interpreter: writes down what it was started as, on a machine that has huge pages.
PROBE = """
import json, os, sys
with open(os.environ["STARTS"], "a") as file:
    flags = [sys.flags.optimize, sys.flags.utf8_mode]
    print(json.dumps([os.getpid(), sys.orig_argv, flags, dict(os.environ)]), file=file)
from diffusion_jax.commands import huge_pages
huge_pages.system_has_them = lambda: True
"""


class Started:
    """Commands in other processes, and the starts that each had: [pid, arguments, flags, environment]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sitecustomize.py").write_text(PROBE)
        ours = {"GLIBC_TUNABLES", "LD_PRELOAD", huge_pages.OPT_OUT}
        path = os.pathsep.join([str(folder), *filter(None, sys.path)])
        self.environ = {name: value for name, value in os.environ.items() if name not in ours}
        self.environ |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        self.environ["STARTS"] = str(folder / "starts.jsonl")

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        (self.folder / "starts.jsonl").unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self.environ | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def starts(self) -> list[Any]:
        return [json.loads(line) for line in open(self.environ["STARTS"])]


@pytest.fixture
def started(tmp_path: Path) -> Started:
    return Started(tmp_path)


COMMAND = ("-m", "diffusion_jax.main")
# What pip writes for the entry point of setup.cfg, below its first line.
SCRIPT = """
import sys
from diffusion_jax.console import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture(params=["module", "installed"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Both forms of the command, as arguments of the interpreter."""
    if request.param == "module":
        return COMMAND
    script = tmp_path / "bin" / "diffusion-jax"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return (str(script),)


def test_the_command_starts_again_once_with_the_same_arguments_and_flags(
    started: Started, command: tuple[str, ...]
) -> None:
    flags = ["-O", "-X", "utf8=1"]
    arguments = ["--help=train", "with space", "", "--config.seed=3"]
    process = started.start(*flags, *command, *arguments, GLIBC_TUNABLES="glibc.malloc.check=0")
    out, err = process.communicate()
    first, second = started.starts()
    assert first[0] == second[0] == process.pid
    assert first[1] == second[1] == [sys.executable, *flags, *command, *arguments]
    assert first[2] == second[2] == [1, 1]
    setting = "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert second[3] == first[3] | {"GLIBC_TUNABLES": setting, huge_pages.OPT_OUT: "1"}
    assert process.returncode == 0 and "train.num_steps" in out, err


def test_the_status_of_wrong_input_stays(started: Started, command: tuple[str, ...]) -> None:
    process = started.start(*command, "--mode=trian")
    _, err = process.communicate()
    assert process.returncode == 2 and "'trian'" in err and len(err.splitlines()) == 1
    assert len(started.starts()) == 2


@pytest.mark.slow
def test_signals_and_standard_input_reach_the_second_start(
    started: Started, command: tuple[str, ...], tmp_path: Path
) -> None:
    config, ready = tmp_path / "config.py", tmp_path / "ready"
    waiting = f"open({str(ready)!r}, 'w').write(input()); time.sleep(1.5)"
    config.write_text(
        f"import time\nfrom diffusion_jax.config import default_config\n"
        f"def get_config():\n    {waiting}\n    return default_config()\n"
    )
    process = started.start(*command, f"--config={config}")
    assert process.stdin is not None
    print("asked for", file=process.stdin, flush=True)
    deadline = time.monotonic() + 60
    while not (ready.exists() and ready.read_text()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, len(started.starts())) == (75, 2), err
    assert err == "SIGTERM: stopped; run the same command to go on\n"


@pytest.mark.parametrize(
    "environ",
    [
        {huge_pages.OPT_OUT: ""},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
)
def test_it_stays_as_it_is_where_the_environment_says_so(
    started: Started, environ: dict[str, str]
) -> None:
    process = started.start(*COMMAND, "--help", **environ)
    process.communicate()
    ((*_, seen),) = started.starts()
    assert process.returncode == 0
    assert {name: seen[name] for name in environ} == environ


@pytest.mark.parametrize("call", ["main(['--help'])", "runpy.run_module(main.__module__)"])
def test_a_script_that_calls_the_command_is_not_started_again(started: Started, call: str) -> None:
    program = f"import runpy\nfrom diffusion_jax.main import main\n{call}"
    started.start("-c", program.replace("__module__)", "__module__, run_name='__main__')")).wait()
    assert len(started.starts()) == 1


# ---- the conditions, one by one ----------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Makes this process the command on a machine that has huge pages and no accelerator; returns its starts."""
    arguments = ["diffusion_jax.main", "--help"]
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", *arguments])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35", raising=False)
    monkeypatch.setattr(huge_pages, "POLICY", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "JAX_PLATFORMS", huge_pages.OPT_OUT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    starts: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *start: starts.append(start))
    return starts


def test_on_a_machine_that_has_them_the_command_is_started_with_them(machine: list[Any]) -> None:
    huge_pages.start_again_with_huge_pages()
    ((path, arguments, environ),) = machine
    assert path == sys.executable
    assert arguments == [sys.executable, "-m", "diffusion_jax.main", "--help"]
    added = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", huge_pages.OPT_OUT: "1"}
    assert environ == {**os.environ, **added}


@pytest.mark.parametrize(
    "library", ["glibc 2.34", "glibc 2.4", "musl 3.0", "", None, ValueError("unknown name")]
)
def test_not_with_another_c_library(
    machine: list[Any], monkeypatch: pytest.MonkeyPatch, library: object
) -> None:
    def confstr(name: str) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(os, "confstr", confstr)
    huge_pages.start_again_with_huge_pages()
    assert machine == []


@pytest.mark.parametrize("policy", ["[always] madvise never", "always madvise [never]", None])
def test_not_where_asking_for_huge_pages_changes_nothing(
    machine: list[Any], policy: str | None
) -> None:
    huge_pages.POLICY.unlink()
    if policy is not None:
        huge_pages.POLICY.write_text(policy)
    huge_pages.start_again_with_huge_pages()
    assert machine == []


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (sys, "platform", "darwin"),
        (sys, "executable", ""),
        (sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "x.json"]),
        (sys, "orig_argv", ["python", "-m", "pytest", "--help"]),
        (sys, "argv", ["bin/diffusion-jax", "--help"]),  # A program that only says so.
        (sys, "orig_argv", ["python", "-m", "diffusion_jax.main", "--mode=sample"]),
    ],
)
def test_not_on_another_system_or_in_another_program(
    machine: list[Any], monkeypatch: pytest.MonkeyPatch, target: Any, name: str, value: Any
) -> None:
    monkeypatch.setattr(target, name, value)
    huge_pages.start_again_with_huge_pages()
    assert machine == []


@pytest.mark.parametrize(
    ("environ", "starts"),
    [
        ({"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"}, 0),
        ({"LD_PRELOAD": "/usr/lib/libfoo.so:/usr/lib/libjemalloc.so.2"}, 0),
        ({"LD_PRELOAD": "/usr/lib/libfoo.so"}, 1),
        ({"JAX_PLATFORMS": "cpu,cuda"}, 1),
        ({"JAX_PLATFORMS": "tpu"}, 0),
    ],
)
def test_not_with_another_allocator_or_device(
    machine: list[Any], monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], starts: int
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    huge_pages.start_again_with_huge_pages()
    assert len(machine) == starts


@pytest.mark.parametrize("plugin", ["jax_plugins/xla_cuda13/__init__.py", "libtpu/__init__.py"])
def test_without_jax_platforms_the_cpu_is_it_only_if_no_plugin_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin: str
) -> None:
    kept = {name: module for name, module in sys.modules.items() if name != "jax_plugins"}
    monkeypatch.setattr(sys, "modules", kept)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [m for m in sys.meta_path if "PathFinder" in str(m)])
    assert huge_pages.runs_on_cpu({}) and huge_pages.runs_on_cpu({"JAX_PLATFORMS": ""})
    (tmp_path / "jax_plugins").mkdir()
    assert huge_pages.runs_on_cpu({})  # A folder that an uninstalled plugin left.
    (tmp_path / plugin).parent.mkdir()
    (tmp_path / plugin).touch()
    assert not huge_pages.runs_on_cpu({})


def test_the_command_runs_on_if_it_cannot_be_started_again(
    machine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        machine.append("tried")
        raise OSError("Argument list too long")

    monkeypatch.setattr(os, "execve", fail)
    huge_pages.start_again_with_huge_pages()
    assert machine == ["tried"]

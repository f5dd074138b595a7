"""A workdir in which something is not what it should be: one line that names it, before any work is done."""

import errno
import os
import subprocess
import sys

import pytest
from tiny_run import write_config

from diffusion_jax import data
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.commands.answers import tell
from diffusion_jax.commands.command_line import parse
from diffusion_jax.commands.edit_inputs import load_mask
from diffusion_jax.commands.modes import MODES
from diffusion_jax.config import load_file, to_json
from diffusion_jax.errors import InputError
from diffusion_jax.main import run
from diffusion_jax.runs.run import checkpoint_folder, load_run


def refused(*arguments: str) -> str:
    """Returns the one line by which a command is refused; of the command nothing is begun."""
    with pytest.raises(InputError) as error:
        run(list(arguments), 0.0)
    assert "\n" not in str(error.value)
    return str(error.value)


# A mode that makes a run refuses a workdir with anything in it.
@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if not mode.makes_run])
@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda path: path.write_text('{"earlier": ['),
        "zeros": lambda path: path.write_bytes(b"\0" * 100),
        "deep": lambda path: path.write_text("[" * 10**5),
        "folder": lambda path: path.mkdir(),
    }.items(),
    ids=lambda damage: damage[0],
)
def test_results_that_cannot_be_added_to_are_refused_before_the_work(tmp_path, mode, damage):
    file = write_config(tmp_path)
    (tmp_path / "config.json").write_text(to_json(load_file(str(file))))
    path = tmp_path / "results" / f"{mode}.json"
    path.parent.mkdir()
    damage[1](path)
    command = f"--config={file}", f"--workdir={tmp_path}", f"--mode={mode}"
    assert refused(*command) == f"{path} does not hold results; move it away"
    path.rmdir() if path.is_dir() else path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    assert refused(*command) == f"{path.parent} is not a folder; move it away"


@pytest.mark.parametrize("mode", ["train", "sample"])
@pytest.mark.parametrize(
    ("name", "what"),
    [(name, "folder") for name in ("checkpoints", "samples", "edits", "results", "tensorboard")]
    + [(name, "file") for name in ("config.json", "metrics.jsonl", "loss.png")],
)
def test_a_file_in_place_of_a_folder_and_the_reverse_are_refused_before_the_work(
    tmp_path, name, what, mode
):
    file, workdir = write_config(tmp_path), tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(load_file(str(file))))
    path = workdir / name
    path.unlink(missing_ok=True)
    path.write_text("") if what == "folder" else path.mkdir()
    said = refused(f"--config={file}", f"--workdir={workdir}", f"--mode={mode}")
    if (name, mode) == ("config.json", "sample"):
        assert said == f"{path}: is a directory"
    else:
        assert said == f"{path} is not a {what}; move it away"


def test_a_home_folder_is_meant_by_a_tilde_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path)
    flags, _ = parse([f"--config=~/{file.name}", "--workdir=~/run"])
    assert flags.workdir == f"{tmp_path}/run"
    assert load_file(f"~/{file.name}").to_json() == load_file(str(file)).to_json()
    assert str(CheckpointStore("~/checkpoints").directory) == f"{tmp_path}/checkpoints"
    assert checkpoint_folder(tmp_path, "~/kept") == f"{tmp_path}/kept"
    with pytest.raises(InputError, match=f"no checkpoint in {tmp_path}/run/checkpoints"):
        load_run("~/run")
    with pytest.raises(InputError, match=f"cannot read {tmp_path}/none.png"):
        load_mask("~/none.png", (8, 8, 1))
    with pytest.raises(InputError, match=f"'{tmp_path}/none' does not exist"):
        data.load("image_folder", "train", source_dir="~/none", image_size=8, cache_dir="~/cache")
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", "~/own")
    assert str(data.default_cache_dir()) == f"{tmp_path}/own"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("workdir", ["~nobody-of-that-name/x", "", "a\0b"])
def test_a_workdir_that_is_no_folder_of_anybody_is_refused(workdir):
    said = refused(f"--workdir={workdir}")
    assert (
        said == f"--workdir is {workdir!r}; it must be a folder"
        or "that user has no home folder" in said
    )


def test_an_error_of_the_system_is_one_line_with_its_path_and_another_a_traceback(capsys):
    for error, expected in (
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), "error: a/b: is a directory\n"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), "error: c: permission denied\n"),
        (OSError(errno.EIO, "Input/output error"), "error: input/output error\n"),
    ):
        assert tell(error) == 1
        assert capsys.readouterr().err == expected
    assert tell(TypeError("a bug")) == 1
    assert "TypeError: a bug" in capsys.readouterr().err


def test_help_into_a_pipe_that_is_closed_is_silent():
    command = [sys.executable, "-m", "diffusion_jax.main", "--help=FIELDS"]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("named", ["foo", "cuda"])
def test_a_platform_that_is_not_here_is_named_in_one_line(named):
    program = (
        "from diffusion_jax.parallel import join\nfrom diffusion_jax.errors import InputError\n"
        "try:\n  join.initialize()\nexcept InputError as error:\n  print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": named},
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith(f"JAX_PLATFORMS is {named!r}, which JAX cannot use here: ")
    assert result.stdout.count("\n") == 1

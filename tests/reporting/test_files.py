"""Files appear whole or not at all, and only where the folder is still the command's."""

import os
import shutil
from pathlib import Path

import pytest

from diffusion_jax.errors import RunError
from diffusion_jax.lifecycle import ownership
from diffusion_jax.reporting.files import whole


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path):
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with whole(path) as unfinished:
            unfinished.write_text(text)
        assert path.read_text() == text
    with pytest.raises(OSError), whole(path) as unfinished:
        unfinished.write_text("half")
        raise OSError(28, os.strerror(28))
    assert [file.name for file in path.parent.iterdir()] == ["file"] and path.read_text() == "two"


def test_a_folder_replaces_a_folder_and_what_a_kill_left(tmp_path: Path):
    path = tmp_path / "folder"
    for name in ("one", "two"):
        (tmp_path / "folder.part").mkdir()
        (tmp_path / "folder.part" / "left").touch()
        with whole(path) as unfinished:
            unfinished.mkdir()
            (unfinished / name).touch()
        assert [file.name for file in path.iterdir()] == [name]


def test_a_folder_that_was_deleted_while_a_command_owns_it_is_not_made_anew(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    ownership.own(folder, "--mode=train")
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="was deleted or moved"), whole(folder / "x" / "y"):
        pass
    ownership.release()
    assert not folder.exists()

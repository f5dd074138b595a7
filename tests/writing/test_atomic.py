"""Files and folders appear whole or not at all."""

import os
from pathlib import Path

import pytest

from diffusion_jax.writing.atomic import atomic_write


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path):
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with atomic_write(path) as unfinished:
            unfinished.write_text(text)
        assert path.read_text() == text
    with pytest.raises(OSError), atomic_write(path) as unfinished:
        unfinished.write_text("half")
        raise OSError(28, os.strerror(28))
    assert [file.name for file in path.parent.iterdir()] == ["file"] and path.read_text() == "two"


def test_a_folder_replaces_a_folder_and_what_a_kill_left(tmp_path: Path):
    path = tmp_path / "folder"
    for name in ("one", "two"):
        (tmp_path / "folder.part").mkdir()
        (tmp_path / "folder.part" / "left").touch()
        with atomic_write(path) as unfinished:
            unfinished.mkdir()
            (unfinished / name).touch()
        assert [file.name for file in path.iterdir()] == [name]


def test_of_two_that_write_a_shared_file_at_once_each_writes_all_of_it(tmp_path: Path):
    path = tmp_path / "cache" / "index"
    with atomic_write(path, shared=True) as one, atomic_write(path, shared=True) as other:
        assert one != other and one.name == other.name == path.name
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # The last to finish.
    with pytest.raises(OSError), atomic_write(path, shared=True) as unfinished:
        unfinished.write_text("half")
        raise OSError(28, os.strerror(28))
    assert [file.name for file in path.parent.iterdir()] == ["index"] and path.read_text() == "one"

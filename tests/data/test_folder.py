"""The listing of a folder: what is found, in which order, and that all else is counted, named and survived."""

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.commands.edit_inputs import _files
from diffusion_jax.data import load
from diffusion_jax.data.folder import natural, shown
from diffusion_jax.data.sources.base import held_out
from diffusion_jax.data.split import Split
from diffusion_jax.errors import InputError


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path, "PNG")


def opened(folder: Path, tmp_path: Path, memory_limit: int = 2**30) -> Split:
    cache: dict[str, Any] = {"cache_dir": tmp_path / "cache", "memory_limit": memory_limit}
    return load(
        "image_folder", "train", source_dir=folder, image_size=4, test_fraction=0.0, **cache
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "a.png")
    return tmp_path / "images"


def test_all_that_is_passed_over_is_counted_and_named(folder: Path, tmp_path: Path) -> None:
    for i in range(5):
        (folder / f"{i}.npy").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "._a.png").write_bytes(b"")
    (folder / "README").write_text("")
    (folder / "empty").mkdir()
    (folder / "b.png").symlink_to("nowhere")
    (folder / "round.png").symlink_to("round.png")
    (folder / "moved").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    save(folder / "in" / "c.png")
    (folder / "same").symlink_to(folder / "in")
    counts = (
        r"\.npy files: 5 \(0.npy, 1.npy, 2.npy, \.\.\.\), links to nothing: 3 \(b.png, moved, round.png\), "
        r"hidden files: 2 \(\.DS_Store, \._a.png\), files without a suffix: 1 \(README\), "
        r"pipes or devices: 1 \(pipe.png\), folders listed under another name: 1 \(same\), "
        r"folders without images: 1 \(empty\)"
    )
    with pytest.warns(
        UserWarning, match=f"^image_folder: 2 images are found in .*; passed over: {counts}$"
    ):
        assert opened(folder, tmp_path).num_images == 2
    counts = counts.partition(", folders listed")[0]
    counts = rf"{counts}".replace("hidden", r"folders: 3 \(empty, in, same\), hidden")
    with pytest.warns(
        UserWarning, match=f"^edit.images: 1 images are found in .*; passed over: {counts}$"
    ):
        assert _files([str(folder)]) == [str(folder / "a.png")]


def test_nothing_is_said_of_a_folder_of_pictures_alone(folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(folder, tmp_path)
        _files([str(folder)])


def test_names_that_are_not_utf_8_are_read_and_printed(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (folder / "a.png").unlink()
    for i in range(2):
        save(folder / name / f"{name}{i}.png", 7)
    save(folder / "new\nline" / "1.png", 9)
    (folder / name / f"{name}.png").write_bytes(b"")
    (folder / name / f"{name}.txt").write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        for limit in (2**30, 0):  # Copied, and in place.
            split = opened(folder, tmp_path / str(limit), memory_limit=limit)
            assert split.class_names == (r"caf\xe9", r"new\nline")
            assert split.read(np.arange(3))["label"].tolist() == [0, 0, 1]
    texts = [str(warning.message) for warning in caught]
    assert [text.encode() for text in texts] and all(r"caf\xe9/caf\xe9" in text for text in texts)
    assert _files([str(folder / name)])[1] == str(folder / name / f"{name}0.png")


def test_two_classes_that_are_written_alike_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").unlink()
    save(folder / os.fsdecode(b"\xe9") / "1.png")
    save(folder / r"\xe9" / "1.png")
    with pytest.raises(InputError, match="two classes that are written"):
        opened(folder, tmp_path)


@pytest.mark.parametrize("inner", ["", "a"])
def test_a_folder_that_cannot_be_listed_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    save(folder / "a" / "1.png")
    scan = os.scandir

    def denied(path: str):
        if os.path.basename(path.rstrip("/")) == (inner or folder.name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(
        InputError, match="^data.source_dir: cannot list .*: permission denied; make it"
    ):
        opened(folder, tmp_path)
    if not inner:
        with pytest.raises(InputError, match="^edit.images: cannot list .*: permission denied"):
            _files([str(folder)])


def test_a_file_that_the_system_does_not_open_is_refused_and_not_left_out_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("diffusion_jax.data.picture._regular", denied)
        with pytest.raises(InputError, match="cannot read .*a.png: permission denied"):
            opened(folder, tmp_path)
    assert opened(folder, tmp_path).num_images == 1


def test_a_name_that_is_too_long_is_answered_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / ("x" * 300), tmp_path)


def test_classes_are_numbered_in_natural_order(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").unlink()
    for k in range(12):
        save(folder / str(k) / "1.png", 20 * k)
    split = opened(folder, tmp_path)
    assert split.class_names == tuple(map(str, range(12)))
    batch = split.read(np.arange(12))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 20 * batch["label"])
    names = ["x10y", "x2y", "2", "", "02", "x2", "10"]
    assert sorted(names, key=natural) == ["", "02", "2", "10", "x2", "x2y", "x10y"]


def test_a_split_says_how_many_images_each_class_and_each_split_has(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.png").unlink()
    for name, count in (("cat", 8), ("dog", 4), ("owl", 1)):
        for i in range(count):
            save(folder / name / f"{i}.png")
    cache: dict[str, Any] = {
        "image_size": 4,
        "test_fraction": 0.25,
        "cache_dir": tmp_path / "cache",
    }
    for limit in (0, 2**30, 1):  # In place; prepared, then held in memory; prepared, then streamed.
        train, test = (
            load("image_folder", name, source_dir=folder, memory_limit=limit, **cache)
            for name in ("train", "test")
        )
        assert train.sizes == test.sizes == {"train": 10, "test": 3}
        assert train.class_counts == (6, 3, 1) and test.class_counts == (2, 1, 0)


def test_a_class_keeps_its_number_if_none_of_its_images_can_be_read(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.png").unlink()
    for name in "abc":
        save(folder / name / "1.png")
    (folder / "b" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 damaged"):
        split = opened(folder, tmp_path)
    assert split.class_names == ("a", "b", "c")
    assert split.read(np.arange(2))["label"].tolist() == [0, 2]


def test_it_is_said_what_keeps_folders_from_being_classes(folder: Path, tmp_path: Path) -> None:
    save(folder / "cats" / "1.png")
    for limit in (2**30, 0):
        with pytest.warns(
            UserWarning, match=r"no classes, since .*\(cats\) lie 1 images \(a.png\)"
        ):
            assert opened(folder, tmp_path, memory_limit=limit).num_classes == 0


def test_every_class_keeps_an_image_to_train_on() -> None:
    labels = np.repeat(np.arange(10), [1, 1, 1, 2, 1, 9, 1, 1, 1, 1])
    for fraction in (0.2, 0.5, 0.9):
        assert len(np.unique(labels[~held_out(labels, fraction)])) == 10
    large = np.arange(1000) % 7
    assert held_out(large, 0.2).sum() == 200  # Where none is alone, nothing moves.


def test_what_is_left_out_is_named_with_its_reason(folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(np.full((4, 4), 4000 + i, np.uint16)).save(folder / f"{i}.png")
    (folder / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "c.png").write_bytes(b"")
    for limit in (2**30, 0):
        with pytest.warns(UserWarning) as caught:
            assert opened(folder, tmp_path, memory_limit=limit).num_images == 1
        texts = sorted(str(warning.message) for warning in caught)
        assert texts[0].startswith("image_folder: 1 damaged files are left out: c.png")
        assert texts[1].startswith("image_folder: 1 files are left out: b.png (EPS, not PNG")
        assert texts[2].startswith(
            "image_folder: 2 files are left out: 0.png, 1.png (nearly black: "
        )


def test_shown_names_hold_only_printable_characters() -> None:
    assert shown("b\u00e4r \u732b.png") == "b\u00e4r \u732b.png"
    assert shown("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"

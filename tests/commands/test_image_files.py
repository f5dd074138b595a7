"""A job's images on disk: what is written is read back, damage is noticed, and nothing is drawn twice."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.commands.image_files import FORMATS, ImageFiles
from diffusion_jax.errors import RunError

SHAPE = (3, 5, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2500, *SHAPE), dtype=np.uint8)
LABELS = np.arange(2500, dtype=np.int32) % 7
NAMES = tuple("abcdefg")


def drawn(folder: Path, num_images: int = 9) -> ImageFiles:
    """A job of two batches, drawn and not yet written."""
    files = ImageFiles(folder, num_images, SHAPE)
    keep(files, 0, 5)
    keep(files, 5, num_images)
    return files


def keep(files: ImageFiles, first: int, stop: int) -> None:
    files.parts.write({"indices": np.arange(first, stop), "images": IMAGES[first:stop]})


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back_and_the_parts_are_gone(name: str, tmp_path: Path) -> None:
    files = drawn(tmp_path)
    assert len(files.finished()) == 9
    assert files.write([name], LABELS[:9], NAMES) == [tmp_path / FORMATS[name].path]
    assert [path.name for path in tmp_path.iterdir()] == [FORMATS[name].path]
    assert len(files.finished()) == 9
    np.testing.assert_array_equal(files.head(6), IMAGES[:6])
    np.testing.assert_array_equal(files.head(100), IMAGES[:9])
    assert ImageFiles(tmp_path, 10, SHAPE).finished().size == 0  # Another job's.
    assert ImageFiles(tmp_path, 9, (3, 4, 3)).finished().size == 0


def test_numpy_reads_a_large_npz_that_was_written_in_parts(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path, 2500, SHAPE)
    for first in range(0, 2500, 700):
        keep(files, first, min(first + 700, 2500))
    files.write(["npz"], LABELS, NAMES)
    with np.load(tmp_path / "images.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], IMAGES)
        np.testing.assert_array_equal(arrays["labels"], LABELS)
    assert len(files.finished()) == 2500


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_written_anew_from_another(
    name: str, damage: str, tmp_path: Path
) -> None:
    other = next(other for other in FORMATS if other != name)
    files = drawn(tmp_path)
    files.write([name, other], None)
    path = tmp_path / FORMATS[name].path
    victim = max(
        (p for p in (path, *path.rglob("*")) if p.is_file()), key=lambda p: p.stat().st_size
    )
    whole = victim.read_bytes()
    broken = bytearray(whole if damage == "flipped" else whole[: len(whole) // 2])
    if damage == "flipped":
        middle = whole.index(IMAGES[4].tobytes()) if name == "array_record" else len(whole) // 2
        broken[middle] ^= 0xFF
    victim.write_bytes(broken)
    drawn_before = ImageFiles(tmp_path, 9, SHAPE)  # Another start: a file is checked once in each.
    drawn_before.write([name], None)
    assert list(FORMATS[name].read(path)) != []
    np.testing.assert_array_equal(np.concatenate(list(FORMATS[name].read(path))), IMAGES[:9])


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[5:9].astype(np.float64),
        IMAGES[5:9].astype(np.int8),
        IMAGES[5:5],
        IMAGES[5:10],
        IMAGES[5:9, :, :4],
        IMAGES[5],
        np.array(None),
    ],
    ids=lambda images: f"{images.dtype}{images.shape}",
)
def test_a_part_that_holds_something_else_is_not_taken_for_images(
    images: np.ndarray, tmp_path: Path
) -> None:
    files = drawn(tmp_path)
    np.savez(tmp_path / "parts" / "00000005-00000008.npz", indices=np.arange(5, 9), images=images)
    assert len(files.finished()) == 5


def test_no_flipped_bit_of_a_part_or_of_a_finished_file_changes_an_image(tmp_path: Path) -> None:
    files = drawn(tmp_path)
    part = tmp_path / "parts" / "00000000-00000004.npz"
    files.write(["npz"], LABELS[:9], NAMES)
    whole = (tmp_path / "images.npz").read_bytes()
    keep(files, 0, 5)
    other = part.read_bytes()
    generator = np.random.default_rng(0)
    for path, content in ((tmp_path / "images.npz", whole), (part, other)):
        for _ in range(150):
            broken = bytearray(content)
            broken[generator.integers(len(content))] ^= 1 << generator.integers(8)
            path.write_bytes(broken)
            again = ImageFiles(tmp_path, 9, SHAPE)
            count = again.finished().size
            if count:
                np.testing.assert_array_equal(again.head(count), IMAGES[:count])
        path.unlink()


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Has the system refuse what a file would hold beyond so many bytes, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", FORMATS)
def test_where_the_disk_is_full_a_line_says_so_and_the_parts_stay(
    name: str, tmp_path: Path
) -> None:
    files = drawn(tmp_path)
    with files_up_to(50), pytest.raises(RunError, match=f"cannot write .*{FORMATS[name].path} "):
        files.write([name], LABELS[:9], NAMES)
    with files_up_to(50), pytest.raises(RunError, match="finished batches are kept"):
        keep(files, 0, 5)
    again = ImageFiles(tmp_path, 9, SHAPE)
    assert again.finished().size == 9
    again.write([name], LABELS[:9])
    assert [path.name for path in tmp_path.iterdir()] == [FORMATS[name].path]


def test_what_a_killed_command_began_to_write_is_removed_whatever_is_written_next(
    tmp_path: Path,
) -> None:
    files = drawn(tmp_path)
    (tmp_path / "png.part").mkdir()
    (tmp_path / "images.npz.part").touch()
    files.write(["npz"], None)
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]

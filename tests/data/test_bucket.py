"""Data in a bucket are copied once, whole, and again when they change."""

from pathlib import Path

import pytest
from etils import epath

from diffusion_jax import addresses, data
from diffusion_jax.data import bucket
from diffusion_jax.errors import InputError, RunError

ADDRESS = "gs://mine/sets"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the bucket's."""
    folder = tmp_path / "remote"
    for name, text in {"one/a": "first", "one/deep/b": "second", "two/c": "third"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def resolve(address: str) -> epath.Path:
        assert address == ADDRESS
        return epath.Path(folder)

    monkeypatch.setattr(addresses, "resolve", resolve)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_a_folder_is_copied_once_and_anew_when_its_files_change(
    remote: Path, tmp_path: Path
) -> None:
    copy = bucket.local_copy(ADDRESS, tmp_path / "copies", "one")
    assert contents(copy) == {"one/a": "first", "one/deep/b": "second"}
    (copy / "one" / "a").write_text("mine!")
    assert bucket.local_copy(ADDRESS, tmp_path / "copies", "one") == copy
    assert contents(copy)["one/a"] == "mine!", "it was copied twice"
    (remote / "one" / "a").write_text("longer now")
    again = bucket.local_copy(ADDRESS, tmp_path / "copies", "one")
    assert again != copy and contents(again)["one/a"] == "longer now"
    assert len(contents(bucket.local_copy(ADDRESS, tmp_path / "copies"))) == 3


def test_a_copy_that_is_cut_off_leaves_nothing_that_is_used(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(read: object, write: object, length: int = 0) -> None:
        write.write(b"fi")  # type: ignore[attr-defined]

    copies = tmp_path / "copies"
    with monkeypatch.context() as patch:
        patch.setattr(bucket.shutil, "copyfileobj", cut_off)
        with pytest.raises(RunError, match="read 2 of"):
            bucket.local_copy(ADDRESS, copies, "one")
    assert contents(copies).keys() == {path.name for path in copies.glob("*.lock")}
    assert contents(bucket.local_copy(ADDRESS, copies, "one"))["one/a"] == "first"


@pytest.mark.parametrize("name", ["nothing", "one/a"])
def test_what_is_not_a_folder_there_is_named(remote: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        bucket.local_copy(ADDRESS, tmp_path / "copies", name)


def test_a_set_in_a_bucket_is_read_from_its_copy(remote: Path, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(10):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(remote / f"{i}.png")
    split = data.load(
        "image_folder",
        "train",
        source_dir=ADDRESS,
        image_size=8,
        cache_dir=tmp_path / "cache",
    )
    assert split.image_shape == (8, 8, 3) and split.num_images == 8


def test_another_kind_of_bucket_and_a_missing_package_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s3://mine/sets is not supported"):
        data.load("image_folder", "train", source_dir="s3://mine/sets", image_size=8)

"""Prepared data appears whole or not at all, once, and is plain TFDS data without TensorFlow."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import load, prepare
from diffusion_jax.data.prepare import CHUNK_BYTES, SEAL, prepared
from diffusion_jax.data.sources.base import Contents, Source, split_arrays
from diffusion_jax.errors import InputError, RunError

HALVES = {"train": slice(None, None, 2), "test": slice(1, None, 2)}


def source_of(n, *, pause=0.0, log=None):
    """A source of n images that takes its time and logs each time it is read."""

    def images():
        for i in range(n):
            time.sleep(pause)
            yield np.full((2, 2, 1), i % 256, np.uint8), i % 3

    def read():
        if log is not None:
            with log.open("a") as file:
                file.write("read\n")
        return Contents((2, 2, 1), ("a", "b", "c"), n, {"train": images()})

    return Source("key", read)


def in_child(root, n, pause, log=None):
    """Starts a process that prepares source_of(n); a fork of this threaded one could hang."""
    child = multiprocessing.get_context("spawn").Process(
        target=prepare_slowly, args=(root, n, pause, log)
    )
    child.start()
    return child


def prepare_slowly(root, n, pause, log):
    prepared("x", source_of(n, pause=pause, log=log), root)


def count(directory):
    return len(tfds_source(directory))


def tfds_source(directory):
    builder: Any = tfds.builder_from_directory(directory)
    return builder.as_data_source("train")


def test_prepared_data_is_what_tfds_itself_reads(tmp_path):
    source = tfds_source(prepared("x", source_of(5), tmp_path))
    assert [int(item["image"][0, 0, 0]) for item in source] == [0, 1, 2, 3, 4]
    assert [int(item["label"]) for item in source] == [0, 1, 2, 0, 1]


def test_a_killed_preparation_is_done_again(tmp_path):
    child = in_child(tmp_path, 10**6, 0.001)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/*/*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert list(tmp_path.glob("*/*/*.part"))
    assert count(prepared("x", source_of(5), tmp_path)) == 5
    assert not list(tmp_path.glob("*/*/*.part"))


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_both_read(tmp_path):
    log = tmp_path / "log"
    children = [in_child(tmp_path / "data", 20, 0.02, log) for _ in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert log.read_text() == "read\n"
    assert count(prepared("x", source_of(20), tmp_path / "data")) == 20


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot prepare digits in .* set cache_dir"):
        load("digits", "train", cache_dir=tmp_path / "file")


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path):
    def images():
        yield np.zeros((2, 2, 1), np.uint8), 0
        raise OSError(28, "No space left on device")

    full = Source("key", lambda: Contents((2, 2, 1), (), 2, {"train": images()}))
    with pytest.raises(RunError, match="no space is left"):
        prepared("x", full, tmp_path)
    assert count(prepared("x", source_of(5), tmp_path)) == 5


@pytest.mark.parametrize(
    ("shape", "n"), [((8, 8, 1), 16_000), ((64, 64, 3), 100), ((256, 256, 3), 5)]
)
def test_a_disk_without_room_is_named_before_anything_is_written(
    tmp_path, monkeypatch, rng, shape, n
):
    images = rng.integers(0, 256, (n, *shape), np.uint8)  # Noise, which no compression shrinks.
    splits = {name: split_arrays(images[rows], np.arange(n)[rows]) for name, rows in HALVES.items()}
    source = Source("key", lambda: Contents(shape, (), n, splits))
    asked, free = [], 0

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    message = (
        r"preparing x needs (\S+) GiB, but 0 GiB are free in '(.*)'; make room, or set cache_dir"
    )
    with pytest.raises(RunError, match=message) as error:
        prepared("x", source, tmp_path / "data")
    match = re.match(message, str(error.value))
    assert match is not None and match[2] == str(tmp_path / "data") and "\n" not in str(error.value)
    assert asked[0].is_relative_to(tmp_path / "data")
    assert not list(tmp_path.rglob("*array_record*"))
    needed = float(match[1]) * 2**30
    free = int(needed * 1.01)  # The message gives three digits.
    prepared("x", source, tmp_path / "data")
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    # Enough, and at most a third too much for tiny images, and 1 MiB for any set.
    assert written < needed * 1.01 < 4 / 3 * written + 2**20


@pytest.mark.parametrize("pattern", ["*array_record*", "dataset_info.json", "features.json"])
def test_damaged_prepared_data_is_named(tmp_path, pattern):
    load("digits", "train", cache_dir=tmp_path)
    for file in (tmp_path / "data").rglob(pattern):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="delete that folder"):
        load("digits", "train", cache_dir=tmp_path)


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    code = """
import sys
import diffusion_jax.data as data
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules, "slow imports"
split = data.load("digits", "test", cache_dir=sys.argv[1])
next(data.batches(split, seed=0, batch_size=8))
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


# tfds:<name>


@pytest.fixture
def make_tfds(tmp_path):
    def make(features, examples, file_format="array_record"):
        class Things(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = "things"
            VERSION = tfds.core.Version("1.2.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        builder = Things(data_dir=tmp_path, file_format=file_format)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )

    return make


IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_user_data_is_read_by_name(tmp_path, make_tfds, encoding):
    features = {
        "image": tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8, encoding=encoding),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "id": tfds.features.Scalar(np.int64),
    }
    make_tfds(features, [{"image": IMAGE + i, "label": i, "id": 7} for i in (0, 1)])
    split = load("tfds:things", "train", source_dir=tmp_path)
    assert split.class_names == ("cat", "dog")
    batch = split.read(np.array([1, 0, 1]))
    np.testing.assert_array_equal(batch["image"], np.stack([IMAGE + 1, IMAGE, IMAGE + 1]))
    assert batch["label"].tolist() == [1, 0, 1]


def test_user_images_of_any_size_are_resized(tmp_path, make_tfds):
    images = [np.full((h, 6, 3), h, np.uint8) for h in (5, 9)]
    features = {
        "image": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding="zlib")
    }
    make_tfds(features, [{"image": image} for image in images])
    with pytest.raises(InputError, match="differ in size; set image_size"):
        load("tfds:things", "train", source_dir=tmp_path)
    split = load("tfds:things", "train", source_dir=tmp_path, image_size=4)
    assert split.image_shape == (4, 4, 3) and split.num_classes == 0
    np.testing.assert_array_equal(
        split.read(np.arange(2))["image"], np.stack([np.full((4, 4, 3), h) for h in (5, 9)])
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_user_images_are_read_and_start_no_program(
    tmp_path, make_tfds, monkeypatch, channels
):
    """An EPS image in TFDS data would make Pillow run gs."""
    monkeypatch.setattr("PIL.Image.open", None)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    pixels = IMAGE[..., 0] if channels == 1 else IMAGE
    Image.fromarray(pixels).save(files[0])
    files[1].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    features = {"image": tfds.features.Image(shape=(4, 4, channels), encoding_format="png")}
    make_tfds(features, [{"image": str(file)} for file in files])
    split = load("tfds:things", "train", source_dir=tmp_path, memory_limit=0)
    np.testing.assert_array_equal(split.read(np.array([0]))["image"][0], IMAGE[..., :channels])
    with pytest.raises(RunError, match="EPS, not PNG"):
        split.read(np.array([1]))


def test_wrong_user_data_is_named(tmp_path, make_tfds):
    with pytest.raises(InputError, match="'things' is not prepared in"):
        load("tfds:things", "train", source_dir=tmp_path)
    make_tfds(
        {"image": tfds.features.Tensor(shape=(4,), dtype=np.uint8)}, [{"image": IMAGE[0, :, 0]}]
    )
    with pytest.raises(InputError, match="no feature 'image' of uint8"):
        load("tfds:things", "train", source_dir=tmp_path)
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        load("tfds:things", "test", source_dir=tmp_path)


def test_no_more_than_a_chunk_of_images_is_in_memory_while_they_are_written(tmp_path, rng):
    noise = rng.integers(0, 256, (256, 256, 3), np.uint8)  # 0.2 MB, and 80 MB of 400.
    images = ((np.roll(noise, i, axis=0), 0) for i in range(400))
    source = Source("key", lambda: Contents(noise.shape, (), 400, {"train": images}))
    tracemalloc.start()
    try:
        directory = prepared("x", source, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * CHUNK_BYTES  # A chunk, the one before it, and what a row takes.
    assert count(directory) == 400


def test_images_in_several_files_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_BYTES", 3 * (4 + prepare.BYTES_PER_IMAGE))
    directory = prepared("x", source_of(10), tmp_path)
    assert len(list(directory.glob("*array_record*"))) == 4
    assert [int(item["image"][0, 0, 0]) for item in tfds_source(directory)] == list(range(10))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("features.json", '"8"', '"4"'),
        ("metadata.json", '"3"', '"4"'),
        ("dataset_info.json", "1438", "1437"),
    ],
)
def test_other_words_in_the_text_of_prepared_data_are_noticed(tmp_path, name, old, new):
    """They have no checksum of TFDS's: images of another shape, or under other names, were read."""
    load("digits", "train", cache_dir=tmp_path)
    (file,) = (tmp_path / "data").rglob(name)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(RunError, match=f"{name} has been changed.*delete that folder"):
        load("digits", "train", cache_dir=tmp_path)


def test_data_prepared_by_an_earlier_version_are_read(tmp_path):
    load("digits", "train", cache_dir=tmp_path)
    for file in (tmp_path / "data").rglob(SEAL):
        file.unlink()
    assert load("digits", "train", cache_dir=tmp_path).num_images == 1438


@pytest.mark.parametrize("part", ["features.json", "array_record"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_pipe_among_prepared_data_is_not_waited_for(tmp_path, make_tfds, part, ours):
    image = tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8)
    make_tfds({"image": image}, [{"image": IMAGE}])
    if ours:
        load("digits", "train", cache_dir=tmp_path)
    file = next(f for f in (tmp_path / ("data" if ours else "things")).rglob("*") if part in f.name)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunError if ours else InputError, match="not a regular file"):
        load(
            "digits" if ours else "tfds:things",
            "train",
            source_dir=None if ours else tmp_path,
            cache_dir=tmp_path,
        )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "dataset_info.json",
            '{"splits": [{"__class__": 1}]}',
            "cannot be read: Failed to parse splits",
        ),
        ("features.json", "{}", "cannot be read"),
        ("label.labels.txt", "cat\n", "names 1 classes, but has 2"),
    ],
)
def test_damaged_user_data_is_refused_in_one_line(tmp_path, make_tfds, name, text, message):
    features = {
        "image": tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    make_tfds(features, [{"image": IMAGE, "label": 0}])
    (file,) = (tmp_path / "things").rglob(name)
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load("tfds:things", "train", source_dir=tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_user_data_whose_files_have_names_that_cannot_be_made_are_refused(tmp_path, make_tfds):
    image = tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8)
    make_tfds({"image": image}, [{"image": IMAGE}])
    (file,) = (tmp_path / "things").rglob("dataset_info.json")
    file.write_text(file.read_text().replace("{SHARD_X_OF_Y}", "{X}"))
    with pytest.raises(InputError, match="cannot be read: Could not format template"):
        load("tfds:things", "train", source_dir=tmp_path)

"""Each source yields the images it was given, and refuses damaged input in one clear line."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import urllib.error
import urllib.request
from typing import Annotated

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import SOURCES, Split, from_arrays, load
from diffusion_jax.data.sources import cifar10, fashion_mnist
from diffusion_jax.data.sources.base import Storage
from diffusion_jax.data.sources.batch_pickle import load_batch
from diffusion_jax.errors import InputError
from diffusion_jax.options import Component, Option
from diffusion_jax.options.kinds import Int


def whole(split):
    return split.read(np.arange(split.num_images))


@pytest.fixture
def offline(monkeypatch):
    def fail(url, timeout):
        assert timeout <= 10
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


# digits


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_digits_are_scikit_learns_each_once_and_in_their_full_range(cache):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    parts = [whole(load("digits", split, cache_dir=cache)) for split in ("train", "test")]
    images = np.concatenate([p["image"] for p in parts]).reshape(1797, 64)
    found = {
        (row.tobytes(), label)
        for row, label in zip(images, np.r_[parts[0]["label"], parts[1]["label"]], strict=True)
    }
    # 255 / 16 v has no ties at .5 but v = 8 (127.5), which rounds to the even 128.
    expected = {
        (bytes((int(v) * 255 + 8) // 16 for v in row), label)
        for row, label in zip(values, labels, strict=True)
    }
    assert found == expected


def test_digits_hold_out_a_fifth_of_each_class(cache):
    split = {name: load("digits", name, cache_dir=cache) for name in ("train", "test")}
    counts = {name: np.bincount(whole(s)["label"]) for name, s in split.items()}
    assert split["test"].num_images == round(0.2 * 1797)
    np.testing.assert_allclose(counts["test"], 0.2 * (counts["train"] + counts["test"]), atol=1)
    assert split["train"].image_shape == (8, 8, 1)
    assert split["train"].num_classes == 10


def test_another_test_fraction_is_another_split(cache):
    assert load("digits", "test", test_fraction=0.5, cache_dir=cache).num_images == round(898.5)


def test_streamed_and_in_memory_reads_agree(cache):
    rows = np.array([5, 0, 5, 1437])
    streamed = load("digits", "train", cache_dir=cache, memory_limit=0).read(rows)
    held = load("digits", "train", cache_dir=cache).read(rows)
    for name in ("image", "label"):
        np.testing.assert_array_equal(streamed[name], held[name])
        assert streamed[name].dtype == held[name].dtype


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "digit"}, "Did you mean 'digits'"),
        ({"split": "tests"}, "Did you mean 'test'"),
        ({"image_size": 16}, "image_size is 16, but digits holds 8x8"),
        ({"image_size": 0}, "image_size is 0"),
        ({"sha256": "00"}, "takes none"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    arguments = {"name": "digits", "split": "train", "cache_dir": tmp_path, **arguments}
    with pytest.raises(InputError, match=message):
        load(**arguments)


def test_no_test_images_is_an_error_that_says_so(tmp_path):
    assert load("digits", "train", test_fraction=0.0, cache_dir=tmp_path).num_images == 1797
    with pytest.raises(InputError, match="digits has no test images"):
        load("digits", "test", test_fraction=0.0, cache_dir=tmp_path)


# Fashion-MNIST


def idx(values):
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(header + values.tobytes())


def idx_of(*shape, values=b""):
    header = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + values)


@pytest.fixture
def fashion_dir(tmp_path, rng):
    folder = tmp_path / "fashion"
    folder.mkdir()
    for prefix, n in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(n, dtype=np.uint8)))
    return folder


def test_fashion_mnist_yields_the_files_images_in_order(tmp_path, fashion_dir):
    for name, prefix, n in (("train", "train", 7), ("test", "t10k", 3)):
        split = load("fashion_mnist", name, source_dir=fashion_dir, cache_dir=tmp_path)
        blob = gzip.decompress((fashion_dir / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        batch = whole(split)
        assert batch["image"].shape == (n, 28, 28, 1)
        assert batch["image"].tobytes() == blob[16:]
        assert batch["label"].tolist() == list(range(n))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b[:-9], "not a whole gzip file"),
        (lambda b: b"PK" + b, "not a whole gzip file"),
        (lambda b: gzip.compress(gzip.decompress(b)[:-1]), "header says"),
        (lambda b: gzip.compress(b"\0\0\x0d" + gzip.decompress(b)[3:]), "not an IDX file"),
        (lambda b: idx_of(0, 28, 28), r"images of shape \(0, 28, 28\)"),
        (lambda b: idx_of(2**31, 2**31, 4), "header says"),  # Their product is 2^64.
        (lambda b: idx_of(2**32 - 1, 2**32 - 1, 0), "sizes|shape"),
        (lambda b: idx_of(*[1] * 200, values=b"x"), "is larger than any"),
        (lambda b: idx(np.zeros((7, 27, 28), np.uint8)), r"must be \(n, 28, 28\)"),
        (lambda b: idx(np.zeros((6, 28, 28), np.uint8)), r"labels of shape \(7,\)"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, fashion_dir, damage, message):
    file = fashion_dir / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=message):
        load("fashion_mnist", "train", source_dir=fashion_dir, cache_dir=tmp_path)


def test_an_idx_file_is_not_unpacked_beyond_any_size_of_use(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_LARGEST", 1 << 20)
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes(50 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is larger than any"):
            fashion_mnist.read_idx(tmp_path / "x.gz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_pipe_in_place_of_an_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        fashion_mnist.read_idx(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot read '.*pipe': not a regular file"):
        load("cifar10", "train", source_dir=tmp_path / "pipe", sha256="0" * 64, cache_dir=tmp_path)


def test_a_missing_idx_file_is_named(tmp_path, fashion_dir):
    (fashion_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="holds no t10k-labels-idx1-ubyte.gz"):
        load("fashion_mnist", "train", source_dir=fashion_dir, cache_dir=tmp_path)


def test_files_found_by_itself_must_be_the_published_ones(tmp_path, fashion_dir, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", fashion_dir)
    with pytest.raises(InputError, match="not the published file"):
        load("fashion_mnist", "train", cache_dir=tmp_path)


def test_without_network_the_error_names_file_and_place(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "none")
    for name, file in (
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
        ("cifar10", cifar10.FILE_NAME),
    ):
        started = time.monotonic()
        with pytest.raises(InputError, match=f"get {file} by hand and set source_dir"):
            load(name, "train", cache_dir=tmp_path)
        assert time.monotonic() - started < 60  # Far below minutes of retries.


def test_a_download_of_the_wrong_file_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"captive portal")
    )
    with pytest.raises(InputError, match="has 14 bytes; the published file has 170498071"):
        load("cifar10", "train", cache_dir=tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


# CIFAR-10


def python2_pickle(value):
    """Pickles a batch, opcode by opcode, as Python 2 did: byte strings and old module names."""

    def dump(value):
        match value:
            case bytes() if len(value) < 256:
                return b"U" + bytes([len(value)]) + value
            case bytes():
                return b"T" + struct.pack("<i", len(value)) + value
            case int():
                return b"J" + struct.pack("<i", value)
            case list():
                return b"](" + b"".join(map(dump, value)) + b"e"
            case dict():
                return b"}(" + b"".join(dump(x) for item in value.items() for x in item) + b"u"
        shape = b"(" + b"".join(map(dump, value.shape)) + b"t"
        empty = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + dump(b"b") + b"tR"
        )
        dtype = b"cnumpy\ndtype\n(" + dump(b"u1") + b"K\0K\x01tR"
        dtype += b"(K\x03" + dump(b"|") + b"NNN" + dump(-1) + dump(-1) + b"K\0tb"
        return empty + b"(K\x01" + shape + dtype + b"\x89" + dump(value.tobytes()) + b"tb"

    return b"\x80\x02" + dump(value) + b"."


def python3_pickle(value):
    return pickle.dumps(value, protocol=2)


@pytest.fixture
def cifar_batches(rng):
    def batch(n):
        return {
            b"labels": rng.integers(0, 10, n).tolist(),
            b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"filenames": [b"x.png"] * n,
        }

    names = [f"class{i}".encode() for i in range(10)]
    return {f"data_batch_{i}": batch(4) for i in (1, 2)} | {
        "test_batch": batch(3),
        "batches.meta": {b"label_names": names, b"num_vis": 3072},
    }


def write_tar(path, blobs):
    with tarfile.open(path, "w:gz") as archive:
        for name, blob in blobs.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def later_pickle(value):
    return pickle.dumps(value, protocol=4)


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle, later_pickle])
def test_cifar10_yields_the_batches_images_in_order(tmp_path, cifar_batches, dump):
    sha256 = write_tar(
        tmp_path / cifar10.FILE_NAME, {name: dump(batch) for name, batch in cifar_batches.items()}
    )
    train = load("cifar10", "train", source_dir=tmp_path, sha256=sha256, cache_dir=tmp_path)
    file = tmp_path / cifar10.FILE_NAME
    test = load("cifar10", "test", source_dir=file, sha256=sha256.upper(), cache_dir=tmp_path)
    for split, names in ((train, ("data_batch_1", "data_batch_2")), (test, ("test_batch",))):
        rows = np.concatenate([cifar_batches[name][b"data"] for name in names])
        batch = whole(split)
        # A row holds 1024 reds, then greens, then blues; each color row by row.
        for channel in range(3):
            plane = rows[:, 1024 * channel : 1024 * (channel + 1)].reshape(-1, 32, 32)
            np.testing.assert_array_equal(batch["image"][..., channel], plane)
        assert batch["label"].tolist() == sum((cifar_batches[n][b"labels"] for n in names), [])
    assert train.class_names[3] == "class3"


class Malicious:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    "value",
    [
        Malicious(),
        {b"data": Malicious()},
        {b"data": np.zeros(3, np.float32)},
        {b"data": np.array([None])},
        [1, 2],
    ],
)
def test_a_pickle_that_holds_anything_else_is_refused_and_not_run(value, capsys):
    with pytest.raises(InputError, match="not a batch of CIFAR-10"):
        load_batch(pickle.dumps(value, protocol=2), "it")
    assert capsys.readouterr().out == ""


BOMBS = {
    "deep tuple": b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "deep tuple of two": b"\x80\x02)" + b"N\x86" * 10**6 + b".",
    "deep tuple as a key": b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.",
    "deep list": b"\x80\x02]" * 1 + b"]" * 10**5 + b"a" * 10**5 + b".",
    "deep list in a batch": b"\x80\x02}U\x01a" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s.",
    "a list of itself": b"\x80\x02]q\0h\0a.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "an array of 2^40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a memo of 2^32": b"\x80\x02}r\xff\xff\xff\xff",
    "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number of 10^5 digits": b"I" + b"9" * 10**5 + b"\n.",
    "a state of a function": b"\x80\x02c_codecs\nencode\n}U\x01xNsb.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_pickle_ends_the_process_or_takes_more_memory_than_it_has(bomb):
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            held = load_batch(BOMBS[bomb], "it")
            assert set(held) == {"a"}  # A list, of which nothing more is asked than its type.
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_no_mutation_of_a_pickle_is_anything_but_a_batch_or_an_error(cifar_batches):
    generator = np.random.default_rng(0)
    for dump in (python2_pickle, python3_pickle, later_pickle):
        whole = dump({**cifar_batches["test_batch"], b"data": np.zeros((3, 20), np.uint8)})
        for _ in range(1000):
            blob = bytearray(whole)
            for _ in range(generator.integers(1, 4)):
                blob[generator.integers(len(blob))] = generator.integers(256)
            with contextlib.suppress(InputError):
                assert isinstance(load_batch(bytes(blob), "it"), dict)


def test_a_member_twice_is_refused(tmp_path, cifar_batches):
    file = tmp_path / "repacked.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name in [*cifar_batches, "data_batch_1"]:
            blob = python3_pickle(cifar_batches[name])
            info = tarfile.TarInfo(f"{len(archive.getmembers())}/{name}")
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="holds data_batch_1 twice"):
        load("cifar10", "train", source_dir=file, sha256=sha256, cache_dir=tmp_path)


@pytest.mark.parametrize("end", [0, 1, 40, -1])
def test_a_truncated_pickle_is_refused(cifar_batches, end):
    with pytest.raises(InputError, match="not a batch of CIFAR-10"):
        load_batch(python2_pickle(cifar_batches["test_batch"])[:end], "it")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b.pop("test_batch"), "test_batch and batches.meta are needed"),
        (lambda b: b.pop("batches.meta"), "test_batch and batches.meta are needed"),
        (lambda b: b["data_batch_1"].pop(b"labels"), "are not CIFAR-10's"),
        (lambda b: b["data_batch_1"][b"labels"].append(1), "are not CIFAR-10's"),
        (lambda b: b["data_batch_1"][b"labels"].__setitem__(0, 10), "numbers in 0 to 9"),
        (lambda b: b["data_batch_1"].update({b"data": [1]}), "are not CIFAR-10's"),
        (lambda b: b["data_batch_1"].update({b"data": [[300] * 3072] * 4}), "rows of 3072 bytes"),
        (
            lambda b: b["data_batch_1"].update({b"data": [[0.5] * 3072] * 4}),
            "objects that no batch does",
        ),
        (
            lambda b: b["data_batch_1"].update({b"labels": [1.5, 2, 3, 4]}),
            "objects that no batch does",
        ),
        (lambda b: b["data_batch_1"].update({b"labels": [True, 2, 3, 4]}), "a list of numbers"),
        (lambda b: b["data_batch_1"].update({b"labels": [[1, 2, 3, 4]]}), "a list of numbers"),
        (lambda b: b.pop("data_batch_1"), "data_batch_1, ..., test_batch"),
        (
            lambda b: b["data_batch_2"].update({b"batch_label": b"training batch 1 of 2"}),
            "of 2 calls itself",
        ),
        (
            lambda b: b["data_batch_1"].update({b"batch_label": b"training batch 1 of 5"}),
            "of 2 calls itself",
        ),
    ],
)
def test_batches_of_another_form_are_refused(tmp_path, cifar_batches, change, message):
    change(cifar_batches)
    file = tmp_path / "repacked.tar.gz"
    sha256 = write_tar(file, {n: python3_pickle(b) for n, b in cifar_batches.items()})
    with pytest.raises(InputError, match=message):
        load("cifar10", "train", source_dir=file, sha256=sha256, cache_dir=tmp_path)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, cifar_batches, monkeypatch):
    file = tmp_path / cifar10.FILE_NAME
    found = write_tar(file, {n: python3_pickle(b) for n, b in cifar_batches.items()})
    with pytest.raises(InputError, match="set sha256 to its SHA-256"):
        load("cifar10", "train", source_dir=tmp_path, cache_dir=tmp_path)
    monkeypatch.setattr(cifar10, "NUM_BYTES", file.stat().st_size)
    with pytest.raises(InputError, match=f"has SHA-256 {found}; it must have {cifar10.SHA256}"):
        load("cifar10", "train", source_dir=tmp_path, cache_dir=tmp_path)
    with pytest.raises(InputError, match=f"it must have {'0' * 64}"):
        load("cifar10", "train", source_dir=tmp_path, sha256="0" * 64, cache_dir=tmp_path)


def test_a_truncated_tarball_is_refused(tmp_path, cifar_batches):
    file = tmp_path / cifar10.FILE_NAME
    write_tar(file, {n: python3_pickle(b) for n, b in cifar_batches.items()})
    file.write_bytes(file.read_bytes()[:-2000])
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="not a whole tar.gz file"):
        load("cifar10", "train", source_dir=tmp_path, sha256=sha256, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "image_folder"])
def test_a_source_dir_that_does_not_exist_is_named(tmp_path, name):
    with pytest.raises(InputError, match="/nowhere' does not exist"):
        load(name, "train", source_dir=tmp_path / "nowhere", cache_dir=tmp_path, image_size=None)


@pytest.mark.parametrize("name", ["fashion_mnist", "image_folder"])
def test_a_file_in_place_of_a_source_dir_is_told_from_a_folder_that_cannot_be_read(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match=f"a.zip' is a file; {name} needs the folder"):
        load(name, "train", source_dir=tmp_path / "a.zip", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10", "image_folder"])
def test_the_number_of_images_is_known_before_they_are_read(
    tmp_path, fashion_dir, cifar_batches, name
):
    batches = {n: python3_pickle(b) for n, b in cifar_batches.items()}
    sha256 = write_tar(tmp_path / cifar10.FILE_NAME, batches)
    for i in range(5):
        Image.new("L", (3, 3)).save(tmp_path / f"{i}.png")
    folder = {"digits": None, "fashion_mnist": fashion_dir}.get(name, tmp_path)
    options = {
        "source_dir": folder,
        "sha256": sha256,
        "image_size": 8 if name in ("digits", "image_folder") else None,
    }
    storage = Storage(tmp_path / "downloads", tmp_path / "index")
    source = SOURCES[name].from_fields(options, storage=storage)
    contents = source.read()
    expected = {"digits": 1797, "fashion_mnist": 10, "cifar10": 11, "image_folder": 5}[name]
    assert contents.num_images == expected
    assert sum(len(list(images)) for images in contents.splits.values()) == expected


def test_a_source_may_hand_over_a_split_and_has_its_own_options(cache, monkeypatch):
    def stripes(split: str, *, count: Annotated[int, Option(Int(1), "images")] = 4) -> Split:
        return from_arrays(np.full((count, 2, 2, 1), 255 * (split == "test"), np.uint8))

    monkeypatch.setitem(SOURCES, "stripes", Component(stripes, "all black or white"))
    split = load("stripes", "test", count=7)
    assert split.num_images == 7 and (split.read(np.arange(7))["image"] == 255).all()
    with pytest.raises(InputError, match="image_size is 8, but stripes takes none"):
        load("stripes", "train", image_size=8)
    with pytest.raises(InputError, match="count is 3, but digits takes none"):
        load("digits", "train", count=3)


@pytest.fixture
def packed(cifar_batches):
    blobs = {name: python3_pickle(batch) for name, batch in cifar_batches.items()}
    return lambda path: write_tar(path / cifar10.FILE_NAME, blobs)


def test_a_repacked_file_is_read_to_its_checksum(tmp_path, packed):
    """Pixels hardly compress: a byte in the middle is one of them."""
    packed(tmp_path)
    path = tmp_path / cifar10.FILE_NAME
    data = bytearray(gzip.decompress(path.read_bytes()))
    stream = bytearray(gzip.compress(bytes(data), 0))  # Stored as it is.
    stream[len(stream) // 2] ^= 1
    path.write_bytes(stream)
    sha256 = hashlib.sha256(stream).hexdigest()
    with pytest.raises(InputError, match="is not a whole tar.gz file .CRC check failed"):
        load("cifar10", "train", source_dir=path, sha256=sha256, cache_dir=tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_promises_terabytes_is_refused_before_they_are_read(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**40
    path = tmp_path / cifar10.FILE_NAME
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(10**6)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="one of its headers says that 1099511627776 bytes follow"):
        load("cifar10", "train", source_dir=path, sha256=sha256, cache_dir=tmp_path)
